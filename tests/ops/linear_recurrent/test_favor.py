"""The oracle of `favor` in float64 loops, and its own tests."""

import math

from tests.ops.plain import weighted


def _favor(projection):
    def feature(w, x):
        y = x / len(x) ** 0.25
        return math.exp(w @ y - y @ y / 2)

    return lambda x, y: sum(feature(w, x) * feature(w, y) for w in projection) / len(projection)


def favor_attention(q, k, v, projection):
    return weighted(q, k, v, _favor(projection), causal=True)


def favor_attention_full(q, k, v, projection):
    return weighted(q, k, v, _favor(projection), causal=False)
