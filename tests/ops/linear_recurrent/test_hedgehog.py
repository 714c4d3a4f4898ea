"""The oracle of `hedgehog` in float64 loops, and its own tests."""

import numpy as np


def hedgehog_attention(q, k, v, w_q, w_k):
    (B, T, N, _), (K, D) = q.shape, v.shape[2:]
    out = np.zeros((B, T, N, D))
    for b, t, n in np.ndindex(B, T, N):
        m = n * K // N
        a = q[b, t, n] @ w_q[n]
        y = [k[b, j, m] @ w_k[m] for j in range(t + 1)]
        w = np.array([np.exp(a + c).sum() + np.exp(-a - c).sum() for c in y])
        out[b, t, n] = sum(w[j] * v[b, j, m] for j in range(t + 1)) / w.sum()
    return out
