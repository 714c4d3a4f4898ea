"""The oracle of `luong_local` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, both, kv, weights
from tests.ops.softmax_core.test_luong import luong_dot


def luong_local_monotonic(q, k, v, radius, allowed=None):
    T, S = q.shape[1], k.shape[1]
    near = np.array([[abs(j - i) <= radius for j in range(S)] for i in range(T)])
    return luong_dot(q, k, v, both(allowed, near))


def luong_local_predictive(q, k, v, center, radius, allowed=None):
    (B, T, N, _), S = q.shape, k.shape[1]
    near, bell = np.zeros((B, N, T, S), bool), np.zeros((B, N, T, S))
    for b in range(B):
        for n in range(N):
            for i in range(T):
                for j in range(S):
                    off = j - center[b, i, n]
                    near[b, n, i, j] = abs(off) <= radius
                    bell[b, n, i, j] = np.exp(-(off**2) / (2 * (radius / 2) ** 2))
    score = lambda b, n, i, j: q[b, i, n] @ k[b, j, kv(q, k, n)]
    return blend(weights(q, k, both(allowed, near), logit=score) * bell, v)
