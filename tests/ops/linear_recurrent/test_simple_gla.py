"""The oracle of `simple_gla` in float64 loops, and its own tests."""

from tests.ops.plain import sums


def simple_gla(q, k, v, log_decay):
    return sums(q, k, v, log_decay)
