"""The oracle of `streaming_llm` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, both, weights


def sink_window_attention(q, k, v, sinks, window, allowed=None):
    T, S = q.shape[1], k.shape[1]
    kept = np.zeros((T, S), bool)
    for i in range(T):
        cache = [j for j in range(S) if j <= i]
        for j in cache:
            kept[i, j] = j < sinks or j > i - window
    return blend(weights(q, k, both(allowed, kept)), v)
