"""The oracle of `mega` in float64 loops, and its own tests."""

from math import erf as _erf
from math import pi as _pi

import numpy as np

from tests.ops import plain as _plain
from tests.ops.linear_recurrent.test_damped_ema import damped_ema_convolution
from tests.ops.plain import silu


def mega(x, weights, chunk=None):
    ema, z, q, k, v, reset, update, h, u, bias = weights
    (B, T, _), radius = x.shape, len(bias) // 2
    smooth = damped_ema_convolution(x, ema)
    Z, V = silu(smooth @ z[0] + z[1]), silu(x @ v[0] + v[1])
    Q, K = Z * q[0] + q[1], Z * k[0] + k[1]
    O = np.zeros_like(V)
    for b, t in np.ndindex(B, T):
        start = 0 if chunk is None else t // chunk * chunk
        for j in range(start, t + 1):
            s = Q[b, t] @ K[b, j] / (t + 1 - start) + bias[radius + max(j - t, -radius)]
            O[b, t] += 0.5 * (1 + _erf((s - 0.5**0.5) / (2 / (4 * _pi)) ** 0.5)) * V[b, j]
    R, P = silu(smooth @ reset[0] + reset[1]), _plain.sigmoid(smooth @ update[0] + update[1])
    return P * silu(smooth @ h[0] + h[1] + (R * O) @ u) + (1 - P) * x
