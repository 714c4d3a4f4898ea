"""The oracle of `dual_triangle` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, both, causal, weights


def dual_triangle_attention(q, k, v, allowed=None):
    T, S = q.shape[1], k.shape[1]
    h, d = q.shape[-1] // 2, v.shape[-1] // 2
    past = causal(T, S)
    future = np.array([[j >= i for j in range(S)] for i in range(T)])
    lower = blend(weights(q[..., :h], k[..., :h], both(allowed, past)), v[..., :d])
    upper = blend(weights(q[..., h:], k[..., h:], both(allowed, future)), v[..., d:])
    return np.concatenate([lower, upper], axis=-1)
