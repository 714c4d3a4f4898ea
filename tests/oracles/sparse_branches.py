"""Oracles of what adds branches, landmarks, caches or corrections to sparse attention."""

import numpy as np

from tests.oracles.plain import blend, both, causal, softmax, weights


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


def _landmark_weights(q, k, block, ok, seen=None, logit=None):
    """Weights (B,N,T,S); seen[b,n,i] are the blocks that the query looks at, or all if None."""
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    group = block + 1
    logit = logit or (lambda b, n, i, j: q[b, i, n] @ k[b, j, n * K // N] / np.sqrt(H))
    out = np.zeros((B, N, T, S))
    for b, n, i in np.ndindex(B, N, T):
        tokens, gates = {}, {}
        for c in range(-(-S // group)):
            if seen is not None and c not in seen[b, n, i]:
                continue
            places = range(c * group, min(c * group + block, S))
            tokens[c] = [j for j in places if ok[b, n, i, j]]
            landmark = c * group + block
            if c < i // group and tokens[c] and landmark < S and ok[b, n, i, landmark]:
                gates[c] = landmark
        own = tokens.get(i // group, [])
        main = own + list(gates.values())
        if not main:
            continue
        p = softmax(np.array([logit(b, n, i, j) for j in main]))
        out[b, n, i, own] = p[: len(own)]
        for c, mass in zip(gates, p[len(own) :], strict=True):
            inside = softmax(np.array([logit(b, n, i, j) for j in tokens[c]]))
            out[b, n, i, tokens[c]] = mass * inside
    return out


def _causal_too(q, k, allowed):
    (B, T, N), S = q.shape[:3], k.shape[1]
    return np.broadcast_to(both(allowed, causal(T, S)), (B, N, T, S))


def landmark_attention(q, k, v, block, allowed=None):
    return blend(_landmark_weights(q, k, block, _causal_too(q, k, allowed)), v)


def _turned(x, position, base):
    half = len(x) // 2
    angle = position * base ** (-np.arange(half) / half)
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag])


def landmark_retrieval(q, k, v, block, top_k, base, heads=None, allowed=None):
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    group = block + 1
    own = lambda i: i // group

    def logit(b, n, i, j):
        """With the query behind a prefix of top_k + 1 blocks, of which the first is for all old."""
        at = (top_k + 1) * group + i % group
        slot = max(top_k + 1 - (own(i) - own(j)), 0)
        turned = (
            _turned(q[b, i, n], at, base),
            _turned(k[b, j, n * K // N], slot * group + j % group, base),
        )
        return turned[0] @ turned[1] / np.sqrt(H)

    seen, X = {}, heads or N
    for b, n, i in np.ndindex(B, N, T):
        together = [m for m in range(N) if m * X // N == n * X // N]
        likes = {
            c: max(logit(b, m, i, c * group + block) for m in together)
            for c in range(min(own(i), S // group))
        }
        # a query behind all keys has no own block, and one more of the others
        count = top_k if own(i) * group < S else top_k + 1
        seen[b, n, i] = [own(i), *sorted(likes, key=lambda c: -likes[c])[:count]]
    ok = _causal_too(q, k, allowed)
    return blend(_landmark_weights(q, k, block, ok, seen, logit), v)


def block_attention(q, k, v, blocks, allowed=None):
    (B, T), S = q.shape[:2], k.shape[1]
    ids = np.broadcast_to(blocks, (B, T))
    seen = np.zeros((B, 1, T, S), bool)
    for b, i, j in np.ndindex(B, T, S):
        real = ids[b, i] >= 0 and ids[b, j] >= 0
        final = ids[b, i] == max(ids[b])
        seen[b, 0, i, j] = j <= i and real and (ids[b, i] == ids[b, j] or final)
    return blend(weights(q, k, both(seen, allowed)), v)


def delta_attention(q, k, v, sparse, gamma, dense_last, allowed=None):
    T, S = q.shape[1], k.shape[1]
    ok = _causal_too(q, k, allowed)
    few_weights = weights(q, k, ok & sparse.dense(T, S))
    few, dense = blend(few_weights, v), blend(weights(q, k, ok), v)
    out = few.copy()
    for b, n, i in np.ndindex(few_weights.shape[:3]):
        g = gamma * (i // gamma)
        if g == i or i >= T - dense_last:
            out[b, i, n] = dense[b, i, n]
        elif few_weights[b, n, i].any():
            out[b, i, n] = few[b, i, n] + dense[b, g, n] - few[b, g, n]
    return out
