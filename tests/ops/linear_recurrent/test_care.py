"""The oracle of `care` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.linear_recurrent.test_care_decoupled import decoupled_attention
from tests.ops.plain import depthwise


def _gelu_tanh(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _interact(x, inter, shape):
    """x (T,width) of one example."""
    centered = x - x.mean(-1, keepdims=True)
    normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
    hidden = _gelu_tanh(normed @ inter.expand).reshape(*shape, -1)
    return _gelu_tanh(depthwise(hidden, inter.mix)).reshape(len(x), -1) @ inter.contract


def care_attention(x, memory, weights, shape):
    u = decoupled_attention(x, weights.decoupled, shape)
    out = np.zeros(x.shape)
    for b in range(len(x)):
        y = np.concatenate([_interact(u[b], weights.inter_1, shape), memory[b]], -1)
        out[b] = (y + _interact(y, weights.inter_2, shape))[:, : x.shape[-1]]
    return out
