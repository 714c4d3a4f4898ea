"""The oracle of `taylor` in float64 loops, and its own tests."""

import numpy as np

from tests.ops import plain


def _cosine(x, y):
    return x @ y / np.sqrt(x @ x) / np.sqrt(y @ y)


def taylor_shift_direct(q, k, v, temperature, allowed=None):
    N, K = q.shape[2], k.shape[2]
    logit = lambda b, n, i, j: temperature[n] * _cosine(q[b, i, n], k[b, j, n * K // N])
    series = lambda s: (1 + s + s**2 / 2) / (1 + s + s**2 / 2).sum()
    return plain.blend(plain.weights(q, k, allowed, series, logit), v)


def taylor_shift(q, k, v, temperature):
    return taylor_shift_direct(q, k, v, temperature)
