"""The oracle of `fast` in float64 loops, and its own tests."""

from tests.ops.plain import weighted


def _fastmax(x, y):
    s = sum((x - x.mean()) / x.std() * (y - y.mean()) / y.std())
    return 1 + s + s * s / 2


def fast_attention(q, k, v):
    return weighted(q, k, v, _fastmax, causal=True)


def fast_attention_full(q, k, v):
    return weighted(q, k, v, _fastmax, causal=False)
