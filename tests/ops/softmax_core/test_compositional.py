"""Compositional attention: its oracle, and the range of its weights."""

import numpy as np

from attnjax.ops.softmax_core import compositional_attention
from tests.helpers import near, qkv, weights_of
from tests.ops.plain import blend, kv, sigmoid, weights

B, T, N, H = 2, 9, 4, 8


def compositional_attention_oracle(q, k, v, allowed=None):
    root = np.sqrt(q.shape[-1])

    def weight(b, n, i, j):
        x, y = q[b, i, n], k[b, j, kv(q, k, n)]
        return np.tanh(x @ y / root) * 2 * sigmoid(-np.abs(x - y).sum() / root)

    return blend(weights(q, k, allowed, lambda s: s, weight), v)


def test_weights_add_ignore_and_subtract():
    q, k, _ = qkv(B, T, N, H)
    w = weights_of(compositional_attention, 3 * q, 3 * k)
    assert np.abs(w).max() < 1 and w.min() < -1e-3 < 1e-3 < w.max()
    same = weights_of(compositional_attention, q, q)  # the gate of equal vectors is one
    own = np.einsum("BTNH,BTNH->BNT", q, q) / np.sqrt(H)
    near(np.diagonal(same, axis1=2, axis2=3), np.tanh(own))
