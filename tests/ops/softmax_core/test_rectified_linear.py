"""Rectified linear attention: its oracles, and the scale of scores."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.softmax_core import rela
from tests.helpers import draw, near, qkv
from tests.ops.plain import blend, sigmoid, weights

B, T, N, H = 2, 9, 4, 8


def rela_oracle(q, k, v, gain, allowed=None):
    return _rms_norm(_rectified(q, k, v, allowed), gain)


def rela_gated_oracle(q, k, v, gain, gate, allowed=None):
    out = _rectified(q, k, v, allowed)
    return sigmoid(gate * out) * _rms_norm(out, gain)


def _rectified(q, k, v, allowed):
    return blend(weights(q, k, allowed, lambda x: np.maximum(x, 0)), v)


def _rms_norm(x, gain):
    out = np.zeros_like(x)
    for b, i in np.ndindex(*x.shape[:2]):
        heads = x[b, i].ravel()
        out[b, i] = x[b, i] / np.sqrt(np.mean(heads**2) + 1e-8) * gain
    return out


def test_rela_ignores_the_scale_of_scores():
    q, k, v = qkv(B, T, N, H)
    gain = draw(N, H, seed=2)
    near(rela(7.0 * q, k, v, gain), rela(q, k, v, gain), 1e-4)


def test_the_norm_of_rela_has_the_released_eps():
    """One key of score 1 and value 1e-4: 1e-4 / sqrt(1e-8 + 1e-8)."""
    one = jnp.ones((1, 1, 1, 1))
    near(rela(one, one, 1e-4 * one, jnp.ones((1, 1)))[0, 0, 0, 0], np.sqrt(0.5))
