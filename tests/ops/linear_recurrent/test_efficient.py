"""The oracle of `efficient` in float64 loops, and its own tests."""

import numpy as np

from tests.ops import plain


def efficient_attention(q, k, v):
    (B, T, N, _), (S, K, _) = q.shape, k.shape[1:]
    w = np.zeros((B, N, T, S))
    for b, n, i in np.ndindex(B, N, T):
        rows = plain.softmax(q[b, i, n])
        keys = np.array([plain.softmax(column) for column in k[b, :, n * K // N].T])  # (H,S)
        w[b, n, i] = rows @ keys
    return plain.blend(w, v)


def efficient_scaled_attention(q, k, v):
    S, H = k.shape[1], q.shape[3]
    # the mean of q.k v over positions
    w = plain.weights(q, k, None, normalize=lambda s: s * np.sqrt(H) / S)
    return plain.blend(w, v)
