"""StreamingLLM: its oracle, and how many keys a query sees."""

import numpy as np
import pytest

from attnjax.ops.kv_decode import sink_window_attention
from tests.helpers import qkv, weights_of
from tests.ops.plain import blend, both, weights

B, N, H = 2, 4, 8


def sink_window_attention_oracle(q, k, v, sinks, window, allowed=None):
    T, S = q.shape[1], k.shape[1]
    kept = np.zeros((T, S), bool)
    for i in range(T):
        cache = [j for j in range(S) if j <= i]
        for j in cache:
            kept[i, j] = j < sinks or j > i - window
    return blend(weights(q, k, both(allowed, kept)), v)


def test_sinks_and_window_bound_the_keys_of_a_query():
    q, k, v = qkv(B, 12, N, H)
    weights = weights_of(sink_window_attention, q, k, sinks=2, window=3)
    assert [(row > 0).sum() for row in weights[0, 0]] == [1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5, 5]
    with pytest.raises(ValueError, match="window: 0; expected at least 1"):
        sink_window_attention(q, k, v, window=0)
