"""Fourier position embedding: its oracle, its tables, and how coefficients are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.position import (
    fourier_coefficients,
    fourier_position_attention,
    fourier_rates,
    fourier_rotary,
)
from tests.helpers import draws, near, qkv
from tests.ops.plain import blend, kv, weights


def fourier_position_attention_oracle(q, k, v, sines, cosines, rates, allowed=None):
    """The heads of q read the tables of the key head that they share."""
    H = q.shape[-1]
    R, P = sines.shape[1:]

    def turned(x, head, t):
        out = np.zeros(H)
        for p in range(H // 2):
            sin = cos = 1.0
            if p < P:
                sin = sum(sines[head, r, p] * np.sin(rates[r] * t) for r in range(R))
                cos = sum(cosines[head, r, p] * np.cos(rates[r] * t) for r in range(R))
            out[p] = x[p] * cos - x[p + H // 2] * sin
            out[p + H // 2] = x[p + H // 2] * cos + x[p] * sin
        return out

    def score(b, n, i, j):
        head = kv(q, k, n)
        return turned(q[b, i, n], head, i) @ turned(k[b, j, head], head, j) / np.sqrt(H)

    return blend(weights(q, k, allowed, logit=score), v)


def test_constant_planes_do_not_tell_distances_and_count_twice():
    q, k = draws((1, 4, 2, 8), (1, 4, 2, 8))
    empty, tell = jnp.zeros((2, 2, 2)), lambda x: x[..., jnp.array([2, 3, 6, 7])]
    q, k = (x.at[..., jnp.array([0, 1, 4, 5])].set(0.0) for x in (q, k))
    turned = [fourier_rotary(x, jnp.arange(4), empty, empty, jnp.ones(2)) for x in (q, k)]
    near(turned[0] @ turned[1].swapaxes(-1, -2), 2 * tell(q) @ tell(k).swapaxes(-1, -2))


def test_rates_that_never_turn_in_training_are_removed():
    rates = fourier_rates(64, 512)
    want = [10000.0 ** (-2 * m / 64) for m in range(32)]
    near(rates, [w for w in want if w >= 2 * np.pi / 512], 1e-12)
    assert len(rates) == 16


def test_coefficients_are_single_waves_and_noise():
    a, b = fourier_coefficients(jax.random.key(0), 400, 7, 16, gain=0.5)
    assert a.shape == b.shape == (400, 7, 4)
    waves = np.zeros((7, 4))
    for p in range(4):  # rates 0, 2, 4, 6
        waves[2 * p, p] = 1.0
    for x in (a, b):
        near(x.mean(0), waves, 0.02)
        near(float((x - waves).std()), 0.5 * np.sqrt(2 / (407 * 4)), 0.05)
    assert abs(a - b).max() > 0.01


def test_shapes_that_do_not_fit():
    q, k, v = qkv(1, 3, 2, 8)
    one, more = jnp.ones((2, 3, 2)), jnp.ones((2, 3, 5))
    with pytest.raises(ValueError, match=r"\(2, 3, 5\), \(2, 3, 5\), \(3,\); expected"):
        fourier_position_attention(q, k, v, more, more, rates=jnp.ones(3))
    with pytest.raises(ValueError, match="sines, cosines, rates"):
        fourier_position_attention(q, k, v, one, one, rates=jnp.ones(4))
