"""The oracle of `nsa` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, both, causal, weights


def _mean_of_runs(x, length, stride):
    B, S, K, H = x.shape
    starts = list(range(0, S - length + 1, stride))
    out = np.zeros((B, len(starts), K, H))
    for c, start in enumerate(starts):
        out[:, c] = sum(x[:, start + i] for i in range(length)) / length
    return out


def native_sparse_attention(q, k, v, gates, branches, compressed=None, local=None, allowed=None):
    (B, T, N), (S, K) = q.shape[:3], k.shape[1:3]
    length, stride, size, top, window = branches
    gates = np.broadcast_to(gates, (B, T, N, 3))
    k_runs, v_runs = compressed or (_mean_of_runs(x, length, stride) for x in (k, v))
    runs = [range(c * stride, c * stride + length) for c in range((S - length) // stride + 1)]
    ok = np.broadcast_to(
        causal(T, S) if allowed is None else both(allowed, causal(T, S)), (B, N, T, S)
    )
    # compressed: a run is visible when its tokens are, judged by the first and the last
    run_ok = np.zeros((B, N, T, len(runs)), bool)
    for c, run in enumerate(runs):
        run_ok[..., c] = ok[..., run[0]] & ok[..., run[-1]]
    p = weights(q, k_runs[:, : len(runs)], run_ok)
    one = blend(p, v_runs[:, : len(runs)])
    # selected: a run's probability counts for each stride of tokens that it and the block share
    seen = np.zeros((B, N, T, S), bool)
    for b, g, t in np.ndindex(B, K, T):
        group = range(g * N // K, (g + 1) * N // K)
        own = t // size
        mass = {}
        for j in range(min(own + 1, -(-S // size))):
            shared = [len(set(run) & set(range(j * size, (j + 1) * size))) for run in runs]
            mass[j] = sum(
                p[b, n, t, c] * shared[c] / stride for n in group for c in range(len(runs))
            )
            if j in (0, own, own - 1):
                mass[j] = np.inf
        for j in sorted(mass, key=lambda j: -mass[j])[:top]:
            seen[b, group, t, j * size : (j + 1) * size] = True
    two = blend(weights(q, k, ok & seen), v)
    # local
    near = np.array([[i - j < window for j in range(S)] for i in range(T)])
    k_local, v_local = local or (k, v)
    three = blend(weights(q, k_local, ok & near), v_local)
    return gates[..., :1] * one + gates[..., 1:2] * two + gates[..., 2:] * three
