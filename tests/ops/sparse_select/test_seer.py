"""The oracle of `seer` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, both, cut_tail, softmax, weights


def _rotated(x, position, base):
    """One vector turned as complex numbers, the second half imaginary."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * base ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def _rotated_tokens(x, base):
    out = np.zeros_like(x)
    for b, t, n in np.ndindex(x.shape[:3]):
        out[b, t, n] = _rotated(x[b, t, n], t, base)
    return out


def _gate(q, k, w_q, w_k, blocks, base, b, n, u):
    """{block: p_ub} over the blocks that begin before block u of the queries ends."""
    K, queries = k.shape[2], cut_tail(q.shape[1], blocks[0])[u]
    mean_q = sum(q[b, i, n] for i in queries) / len(queries)
    g = _rotated(mean_q @ w_q[n], queries[0], base)
    scores = {}
    for c, keys in enumerate(cut_tail(k.shape[1], blocks[1])):
        if keys[0] <= queries[-1]:
            kv = n * K // q.shape[2]
            inside = np.array([k[b, j, kv] for j in keys])
            features = np.concatenate([inside.max(0), inside.min(0), inside.mean(0)])
            h = _rotated(features @ w_k[kv * len(w_k) // K], keys[0], base)
            scores[c] = g @ h / np.sqrt(len(g))
    return dict(zip(scores, softmax(np.array(list(scores.values()))), strict=True))


def seer_attention(q, k, v, w_q, w_k, blocks, choose, allowed=None):
    (B, T, N, _), S, base = q.shape, k.shape[1], 10000.0
    seen = np.zeros((B, N, T, S), bool)
    for b, n in np.ndindex(B, N):
        for u, queries in enumerate(cut_tail(T, blocks[0])):
            share = _gate(q, k, w_q, w_k, blocks, base, b, n, u)
            own = queries[0] // blocks[1]
            before = sorted((c for c in share if c < own), key=share.get, reverse=True)
            if "k" in choose.keywords:
                taken = before[: choose.keywords["k"] - (own in share)]
            else:
                taken = [c for c in before if np.log(share[c]) >= choose.keywords["least"]]
            for i in queries:
                for j in range(min(i + 1, S)):
                    seen[b, n, i, j] = j // blocks[1] in (own, *taken)
    q, k = _rotated_tokens(q, base), _rotated_tokens(k, base)
    return blend(weights(q, k, both(allowed, seen)), v)
