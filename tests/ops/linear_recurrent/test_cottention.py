"""The oracle of `cottention` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import sigmoid_gated, sums, unit


def cottention(q, k, v, m):
    count = np.arange(1, q.shape[1] + 1)[:, None, None]
    return sums(unit(q), unit(k), v) / count ** sigmoid_gated(m)[:, None]


def cottention_full(q, k, v, m):
    (B, T, N, _), (S, K, D) = q.shape, v.shape[1:]
    q, k, out = unit(q), unit(k), np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        seen = sum(q[b, i, n] @ k[b, j, n * K // N] * v[b, j, n * K // N] for j in range(S))
        out[b, i, n] = seen / S ** sigmoid_gated(m[n])
    return out
