"""Gated cross-attention: the oracle, and hidden padding."""

import jax.numpy as jnp
import numpy as np

from attnjax import masks
from attnjax.core.numerics import Affine
from attnjax.ops.softmax_core import CrossWeights, gated_cross_attention_unit
from tests.helpers import draw, draws, near
from tests.ops.plain import sigmoid, silu, softmax, visible

B, T, S, W, Z, R = 2, 5, 7, 8, 6, 7


def gated_cross_attention_unit_oracle(x, c, weights, allowed=None):
    out, radius = np.zeros(x.shape), len(weights.bias) // 2
    for b, i in np.ndindex(*x.shape[:2]):
        centered = x[b, i] - x[b, i].mean()
        y = centered / np.sqrt((centered**2).mean() + 1e-5)
        u, r, q = (y @ m.w + m.b for m in (weights.update, weights.reset, weights.q))
        o, js = np.zeros(x.shape[2]), visible(allowed, b, 0, i, c.shape[1])
        if js:
            k = c[b, js] @ weights.k.w + weights.k.b
            far = [radius + max(-radius, min(radius, j - i)) for j in js]
            p = softmax(k @ q / np.sqrt(len(q)) + weights.bias[far])
            o = p @ silu(c[b, js] @ weights.v.w + weights.v.b)
        h = silu((silu(r) * o) @ weights.h.w + weights.h.b)
        out[b, i] = sigmoid(u) * h + (1 - sigmoid(u)) * x[b, i]
    return out


def drawn_weights():
    widths = [(W, W), (W, W), (W, Z), (W, Z), (W, W), (W, W)]
    maps = [Affine(*draws(m, m[1:], seed=i, scale=0.4)) for i, m in enumerate(widths)]
    return CrossWeights(*maps, draw(R, seed=9))


def test_padding_of_the_text_weighs_nothing():
    x, c = draws((B, T, W), (B, S, W))
    weights, mask = drawn_weights(), masks.lengths(None, jnp.array([S, 3]))
    whole = gated_cross_attention_unit(x, c, weights, mask=mask)
    spoiled = gated_cross_attention_unit(x, c.at[1, 3:].set(jnp.nan), weights, mask=mask)
    near(spoiled, whole)
