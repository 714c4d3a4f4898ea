"""The oracle of `rwkv6` in float64 loops, and its own tests."""

from tests.ops.plain import sums


def rwkv6(q, k, v, log_decay, u):
    return sums(q, k, v, log_decay, own=u, late=1)
