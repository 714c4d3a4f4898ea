"""Luong's local attention: its oracles, the window around a center, the center's gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.softmax_core import luong_local_predictive
from tests.helpers import draw, near, qkv, weights_of
from tests.ops.plain import blend, both, kv, weights
from tests.ops.softmax_core.test_luong import luong_dot_oracle

B, T, N, H = 2, 9, 4, 8


def luong_local_monotonic_oracle(q, k, v, radius, allowed=None):
    T, S = q.shape[1], k.shape[1]
    near = np.array([[abs(j - i) <= radius for j in range(S)] for i in range(T)])
    return luong_dot_oracle(q, k, v, both(allowed, near))


def luong_local_predictive_oracle(q, k, v, center, radius, allowed=None):
    (B, T, N, _), S = q.shape, k.shape[1]
    near, bell = np.zeros((B, N, T, S), bool), np.zeros((B, N, T, S))
    for b, n, i, j in np.ndindex(B, N, T, S):
        offset = j - center[b, i, n]
        near[b, n, i, j] = abs(j - np.floor(center[b, i, n])) <= radius
        bell[b, n, i, j] = np.exp(-(offset**2) / (2 * (radius / 2) ** 2))
    score = lambda b, n, i, j: q[b, i, n] @ k[b, j, kv(q, k, n)]
    return blend(weights(q, k, both(allowed, near), logit=score) * bell, v)


def test_a_window_is_centered_at_the_place_before_its_center():
    one = jnp.ones((1, 1, 1, 1))
    v = jnp.asarray([1.0, 10.0, 100.0, 1000.0]).reshape(1, 4, 1, 1)
    out = luong_local_predictive(one, 0 * v, v, jnp.full((1, 1, 1), 1.5), radius=1)
    # the keys 0, 1, 2, a third each, times exp(-2 * 1.5^2), exp(-2 * 0.5^2), exp(-2 * 0.5^2)
    near(out[0, 0, 0], [(1 * 0.011109 + 110 * 0.606531) / 3], 1e-5)


def test_local_predictive_sees_its_window_only_and_moves_its_center():
    q, k, v = qkv(B, T, N, H)
    center = jnp.asarray(np.random.default_rng(3).uniform(0.0, T, (B, T, N)), jnp.float32)
    weights = weights_of(luong_local_predictive, q, k, center, radius=2)
    first = np.floor(np.asarray(center)).transpose(0, 2, 1)[..., None]
    distance = np.abs(np.arange(T) - first)
    assert (weights[distance > 2] == 0).all()
    assert (weights[distance <= 2] > 0).all()
    loss = jax.jit(lambda c: luong_local_predictive(q, k, v, c, radius=2).sum())
    step = draw(B, T, N, seed=4, scale=1e-2)
    slope = jnp.vdot(jax.grad(loss)(center), step)
    near(loss(center + step / 2) - loss(center - step / 2), slope, 2e-3)
    with pytest.raises(ValueError, match="radius: 0; expected at least 1"):
        luong_local_predictive(q, k, v, center, radius=0)
