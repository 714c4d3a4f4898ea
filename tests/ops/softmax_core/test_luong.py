"""The oracle of `luong` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, kv, weights


def luong_dot(q, k, v, allowed=None):
    score = lambda b, n, i, j: q[b, i, n] @ k[b, j, kv(q, k, n)]
    return blend(weights(q, k, allowed, logit=score), v)


def luong_general(q, k, v, w, allowed=None):
    score = lambda b, n, i, j: q[b, i, n] @ w @ k[b, j, kv(q, k, n)]
    return blend(weights(q, k, allowed, logit=score), v)


def luong_concat(q, k, v, w_query, w_key, w_score, allowed=None):
    w = np.concatenate([w_query, w_key])  # one matrix acts on [h_t; h_s]

    def score(b, n, i, j):
        return w_score @ np.tanh(np.concatenate([q[b, i, n], k[b, j, kv(q, k, n)]]) @ w)

    return blend(weights(q, k, allowed, logit=score), v)


def luong_location(q, v, w, allowed=None):
    return blend(weights(q, v, allowed, logit=lambda b, n, i, j: w[j] @ q[b, i, n]), v)
