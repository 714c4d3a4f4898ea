"""Oracles of attnjax.ops.position: each paper's formula in float64 loops."""

import numpy as np

from tests.oracles.plain import blend, both, causal, weights


def shaw_relative_attention(q, k, v, table_k, table_v, allowed=None):
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    far = len(table_k) // 2
    entry = lambda i, j: min(max(j - i, -far), far) + far

    def score(b, n, i, j):
        return q[b, i, n] @ (k[b, j, n * K // N] + table_k[entry(i, j)]) / np.sqrt(H)

    w = weights(q, k, allowed, logit=score)
    out = blend(w, v)
    for b, n, i, j in np.ndindex(B, N, T, S):
        out[b, i, n] += w[b, n, i, j] * table_v[entry(i, j)]
    return out


def disentangled_attention(q, k, v, q_rel, k_rel, allowed=None):
    (_, _, N, H), K = q.shape, k.shape[2]
    far = len(k_rel) // 2

    def delta(i, j):
        if i - j <= -far:
            return 0
        return 2 * far - 1 if i - j >= far else i - j + far

    def score(b, n, i, j):
        query, key = q[b, i, n], k[b, j, n * K // N]
        return (
            query @ key + query @ k_rel[delta(i, j), n] + key @ q_rel[delta(j, i), n]
        ) / np.sqrt(3 * H)

    return blend(weights(q, k, allowed, logit=score), v)


def dual_triangle_attention(q, k, v, allowed=None):
    T, S = q.shape[1], k.shape[1]
    h, d = q.shape[-1] // 2, v.shape[-1] // 2
    past = causal(T, S)
    future = np.array([[j >= i for j in range(S)] for i in range(T)])
    lower = blend(weights(q[..., :h], k[..., :h], both(allowed, past)), v[..., :d])
    upper = blend(weights(q[..., h:], k[..., h:], both(allowed, future)), v[..., d:])
    return np.concatenate([lower, upper], axis=-1)
