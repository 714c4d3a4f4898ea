"""The oracle of `streaming_llm` in float64 loops, and its own tests."""

import numpy as np
import pytest

from attnjax.ops.kv_decode import sink_window_attention
from tests.helpers import draws, weights_of
from tests.ops.plain import blend, both, weights


def sink_window_attention_oracle(q, k, v, sinks, window, allowed=None):
    T, S = q.shape[1], k.shape[1]
    kept = np.zeros((T, S), bool)
    for i in range(T):
        cache = [j for j in range(S) if j <= i]
        for j in cache:
            kept[i, j] = j < sinks or j > i - window
    return blend(weights(q, k, both(allowed, kept)), v)


B, T, N, H = 2, 9, 4, 8


def qkv(T=T, seed=0):
    return draws((B, T, N, H), (B, T, N, H), (B, T, N, H), seed=seed)


def test_sinks_and_window_bound_the_keys_of_a_query():
    q, k, v = qkv(12)
    weights = weights_of(sink_window_attention, q, k, sinks=2, window=3)
    assert [(row > 0).sum() for row in weights[0, 0]] == [1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5, 5]
    with pytest.raises(ValueError, match="window: 0; expected at least 1"):
        sink_window_attention(q, k, v, window=0)
