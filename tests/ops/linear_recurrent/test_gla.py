"""The oracle of `gla` in float64 loops, and its own tests."""

from tests.ops.plain import sums


def gla(q, k, v, log_decay):
    return sums(q, k, v, log_decay)
