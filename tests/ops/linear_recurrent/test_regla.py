"""The oracle of `regla` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import rms, sigmoid_gated, sums


def regla(q, k, v, gate, refine):
    def phi(x):
        return np.exp(x - x.max(-1, keepdims=True))

    g, r = sigmoid_gated(gate), sigmoid_gated(refine)
    refined = (1 - r) * g**2 + r * (1 - (1 - g) ** 2)
    return rms(sums(phi(q), phi(k), v, np.log(refined)))
