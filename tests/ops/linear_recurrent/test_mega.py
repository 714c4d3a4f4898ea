"""Mega: its oracle; with softmax instead of laplace."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import normalizers
from attnjax.ops.linear_recurrent import mega
from tests.helpers import near
from tests.laws.cases import BY_NAME
from tests.ops.linear_recurrent.test_damped_ema import damped_ema_convolution_oracle
from tests.ops.plain import sigmoid, silu


def mega_oracle(x, weights, chunk=None):
    ema, z, q, k, v, reset, update, h, u, bias = weights
    (B, T, _), radius = x.shape, len(bias) // 2
    smooth = silu(damped_ema_convolution_oracle(x, ema))
    Z, V = silu(smooth @ z[0] + z[1]), silu(x @ v[0] + v[1])
    Q, K = Z * q[0] + q[1], Z * k[0] + k[1]
    O = np.zeros_like(V)
    for b, t in np.ndindex(B, T):
        start = 0 if chunk is None else t // chunk * chunk
        for j in range(start, t + 1):
            s = Q[b, t] @ K[b, j] / (t + 1 - start) + bias[radius + max(j - t, -radius)]
            sigma = math.sqrt(1 / (4 * math.pi))
            f = (1 + math.erf((s - math.sqrt(0.5)) / (sigma * math.sqrt(2)))) / 2
            O[b, t] += f * V[b, j]
    R, P = silu(smooth @ reset[0] + reset[1]), sigmoid(smooth @ update[0] + update[1])
    return P * silu(smooth @ h[0] + h[1] + (R * O) @ u) + (1 - P) * x


def test_mega_with_softmax_averages_where_scores_are_equal():
    x, w = (BY_NAME["mega"].sample()[name] for name in ("x", "weights"))
    zero = jax.tree.map(jnp.zeros_like, w)
    # no reset by the gate's maps, no path past attention: out = silu(silu(b) mean(V) u)
    reset = zero.reset._replace(b=zero.reset.b + 1.0)
    update = zero.update._replace(b=zero.update.b + 100.0)
    w = zero._replace(ema=w.ema, v=w.v, u=w.u, reset=reset, update=update)
    total = jnp.cumsum(jax.nn.silu(w.v(x)), axis=1)
    seen = jnp.arange(1, x.shape[1] + 1)[:, None]
    out = lambda o: jax.nn.silu((jax.nn.silu(1.0) * o) @ w.u)
    near(mega(x, w, normalizer=normalizers.softmax), out(total / seen))
    weight = normalizers.laplace.numerator(jnp.zeros(()), None, (), ())
    near(mega(x, w), out(weight * total))
