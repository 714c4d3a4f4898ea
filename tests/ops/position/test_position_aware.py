"""Position-aware cross-attention: its oracle, and a network that steps along the text."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.position import position_aware_cross_attention
from tests.helpers import near, run
from tests.ops.plain import blend, weights


def position_aware_cross_attention_oracle(q, k, v, width, allowed=None):
    S = k.shape[1]
    code = np.zeros((len(k), S, k.shape[2], width))
    for j, e in np.ndindex(S, width // 2):
        angle = j * 10000.0 ** (-2 * e / width)
        code[:, j, :, 2 * e], code[:, j, :, 2 * e + 1] = np.sin(angle), np.cos(angle)
    y = blend(weights(q, k, allowed), code)
    return blend(weights(y, code, allowed), v)


def test_a_network_that_turns_the_code_reads_the_next_key():
    """A query that finds key 1, turned by one place, reads key 2."""
    k = 50.0 * jnp.eye(6)[None, :, None]
    v = jnp.arange(6.0)[None, :, None, None]
    rate = 10000.0 ** (-2 * jnp.arange(32) / 64)

    def step(y):
        s, c = y[..., 0::2], y[..., 1::2]
        turned = s * jnp.cos(rate) + c * jnp.sin(rate), c * jnp.cos(rate) - s * jnp.sin(rate)
        return 40.0 * jnp.stack(turned, -1).reshape(y.shape)

    q = 50.0 * jnp.eye(6)[None, 1:2, None]
    near(run(position_aware_cross_attention, q, k, v, width=64, network=step), [[[[2.0]]]], 1e-2)
    assert np.isfinite(run(position_aware_cross_attention, q, k, v, width=64)).all()
