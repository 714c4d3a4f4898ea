"""The oracle of `delta` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, causal_too, weights


def delta_attention(q, k, v, sparse, gamma, dense_last, allowed=None):
    T, S = q.shape[1], k.shape[1]
    ok = causal_too(q, k, allowed)
    few_weights = weights(q, k, ok & sparse.dense(T, S))
    few, dense = blend(few_weights, v), blend(weights(q, k, ok), v)
    out = few.copy()
    for b, n, i in np.ndindex(few_weights.shape[:3]):
        g = gamma * (i // gamma)
        if g == i or i >= T - dense_last:
            out[b, i, n] = dense[b, i, n]
        elif few_weights[b, n, i].any():
            out[b, i, n] = few[b, i, n] + dense[b, g, n] - few[b, g, n]
    return out
