"""The oracle of `flow` in float64 loops, and its own tests."""

import numpy as np

from tests.ops import plain


def flow_attention(q, k, v):
    (B, T, N, _), (S, K, D) = q.shape, v.shape[1:]
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        m = n * K // N
        c = plain.sigmoid(q[b, :, n]) @ plain.sigmoid(k[b, :, m]).T  # capacities (T,S)
        sink = (c / c.sum(0)).sum(1)
        source = (c / c.sum(1)[:, None]).sum(0)
        u = S * plain.softmax(np.minimum(source, 1))[:, None] * v[b, :, m]
        for i in range(T):
            taken = sum(c[i, j] / c[i].sum() * u[j] for j in range(S))
            out[b, i, n] = plain.sigmoid(sink[i] * T / S) * taken
    return out
