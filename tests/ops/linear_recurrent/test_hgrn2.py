"""The oracle of `hgrn2` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import sums


def hgrn2(q, log_forget, v):
    return sums(q, 1 - np.exp(log_forget), v, log_forget)
