"""The oracle of `clipped_softmax` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, sigmoid, softmax, weights
from tests.ops.softmax_core.test_multi_head import multi_head_attention


def clipped_softmax_attention(q, k, v, gamma, zeta, allowed=None):
    clipped = lambda x: np.clip((zeta - gamma) * softmax(x) + gamma, 0, 1)
    return blend(weights(q, k, allowed, clipped), v)


def gated_attention(q, k, v, gate, allowed=None):
    out = multi_head_attention(q, k, v, allowed)
    for b, i, n in np.ndindex(*gate.shape):
        out[b, i, n] *= sigmoid(gate[b, i, n])
    return out
