"""The oracle of `local_linear` in float64 loops, and its own tests."""

import math

import numpy as np

from tests.ops.plain import depthwise, weighted


def local_linear_attention(q, k, v, local, shape):
    (B, T, N, _), D = q.shape, v.shape[3]
    relu = lambda x: np.maximum(x, 0)
    out = weighted(q, k, v, lambda x, y: relu(x) @ relu(y), causal=False)
    gelu = np.vectorize(lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))))
    for b, n in np.ndindex(B, N):
        hidden = gelu(depthwise(out[b, :, n].reshape(*shape, D), local.first[:, :, n]))
        hidden = local.scale[n] * hidden + local.shift[n]
        out[b, :, n] += depthwise(hidden, local.second[:, :, n]).reshape(T, D)
    return out
