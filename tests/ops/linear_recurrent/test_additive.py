"""The oracle of `additive` in float64 loops, and its own tests."""

import numpy as np

from tests.ops import plain


def additive_attention(q, k, v, w):
    (B, T, N, H), K = q.shape, k.shape[2]
    out = np.zeros((B, T, N, v.shape[3]))
    for b, n in np.ndindex(B, N):
        a = plain.softmax(np.array([w[n] @ q[b, t, n] / np.sqrt(H) for t in range(T)]))
        g = sum(a[t] * q[b, t, n] for t in range(T))
        for t in range(T):
            out[b, t, n] = v[b, t, n * K // N] * k[b, t, n * K // N] * g
    return out
