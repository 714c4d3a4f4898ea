"""The oracle of `care_decoupled` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import depthwise, elu1_kernelized, weighted


def decoupled_attention(x, weights, shape):
    (B, T, _), d1 = x.shape, weights.qkv.shape[1]
    q, k, v = (np.tensordot(x[..., :d1], w, 1) for w in weights.qkv)
    far = weighted(q, k, v, lambda x, y: elu1_kernelized(x) @ elu1_kernelized(y), causal=False)
    out = np.zeros(x.shape)
    out[..., :d1] = far.reshape(B, T, d1)
    half = weights.small.shape[-1]
    for b in range(B):
        cells = x[b].reshape(*shape, -1)
        small = depthwise(cells[..., d1 : d1 + half], weights.small)
        large = depthwise(cells[..., d1 + half :], weights.large)
        out[b, :, d1:] = np.concatenate([small, large], -1).reshape(T, -1)
    return out
