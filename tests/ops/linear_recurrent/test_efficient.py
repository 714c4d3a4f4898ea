"""Efficient attention: its oracles; the scaled one in T x S form."""

import numpy as np

from attnjax.ops.linear_recurrent import efficient_scaled_attention
from tests.helpers import near, qkv
from tests.ops import plain

B, T, N, H = 2, 9, 4, 8


def efficient_attention_oracle(q, k, v):
    (B, T, N, _), (S, K, _) = q.shape, k.shape[1:]
    w = np.zeros((B, N, T, S))
    for b, n, i in np.ndindex(B, N, T):
        rows = plain.softmax(q[b, i, n])
        keys = np.array([plain.softmax(column) for column in k[b, :, n * K // N].T])  # (H,S)
        w[b, n, i] = rows @ keys
    return plain.blend(w, v)


def efficient_scaled_attention_oracle(q, k, v):
    S, H = k.shape[1], q.shape[3]
    # the mean of q.k v over positions
    w = plain.weights(q, k, None, normalize=lambda s: s * np.sqrt(H) / S)
    return plain.blend(w, v)


def test_scaled_efficient_attention_is_dot_product_attention_over_the_length():
    q, k, v = qkv(B, T, N, H)
    scores = np.einsum("btnh,bsnh->bnts", q, k) / T
    near(efficient_scaled_attention(q, k, v), np.einsum("bnts,bsnd->btnd", scores, v))
