"""The oracle of `pointer` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import kv, weights


def pointer_attention(q, k, w_query, w_key, w_score, allowed=None):
    def score(b, n, i, j):
        return w_score @ np.tanh(w_key.T @ k[b, j, kv(q, k, n)] + w_query.T @ q[b, i, n])

    return weights(q, k, allowed, logit=score)
