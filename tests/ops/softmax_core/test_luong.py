"""Luong's global attention: the oracles of four scores, and the missing scale."""

import numpy as np

from attnjax.ops.softmax_core import luong_dot, multi_head_attention
from tests.helpers import near, qkv
from tests.ops.plain import blend, kv, weights

B, T, N, H = 2, 9, 4, 8


def luong_dot_oracle(q, k, v, allowed=None):
    score = lambda b, n, i, j: q[b, i, n] @ k[b, j, kv(q, k, n)]
    return blend(weights(q, k, allowed, logit=score), v)


def luong_general_oracle(q, k, v, w, allowed=None):
    score = lambda b, n, i, j: q[b, i, n] @ w @ k[b, j, kv(q, k, n)]
    return blend(weights(q, k, allowed, logit=score), v)


def luong_concat_oracle(q, k, v, w_query, w_key, w_score, allowed=None):
    w = np.concatenate([w_query, w_key])  # one matrix acts on [h_t; h_s]

    def score(b, n, i, j):
        return w_score @ np.tanh(np.concatenate([q[b, i, n], k[b, j, kv(q, k, n)]]) @ w)

    return blend(weights(q, k, allowed, logit=score), v)


def luong_location_oracle(q, v, w, allowed=None):
    return blend(weights(q, v, allowed, logit=lambda b, n, i, j: w[j] @ q[b, i, n]), v)


def test_luong_dot_is_not_scaled():
    q, k, v = qkv(B, T, N, H)
    near(luong_dot(q, k, v), multi_head_attention(q * H**0.5, k, v))
