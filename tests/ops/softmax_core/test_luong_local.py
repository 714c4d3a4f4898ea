"""The oracle of `luong_local` in float64 loops, and its own tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.softmax_core import (
    luong_local_predictive,
)
from tests.helpers import draws, near, weights_of
from tests.ops.plain import blend, both, kv, weights
from tests.ops.softmax_core.test_luong import luong_dot_oracle


def luong_local_monotonic_oracle(q, k, v, radius, allowed=None):
    T, S = q.shape[1], k.shape[1]
    near = np.array([[abs(j - i) <= radius for j in range(S)] for i in range(T)])
    return luong_dot_oracle(q, k, v, both(allowed, near))


def luong_local_predictive_oracle(q, k, v, center, radius, allowed=None):
    (B, T, N, _), S = q.shape, k.shape[1]
    near, bell = np.zeros((B, N, T, S), bool), np.zeros((B, N, T, S))
    for b in range(B):
        for n in range(N):
            for i in range(T):
                for j in range(S):
                    off = j - center[b, i, n]
                    near[b, n, i, j] = abs(off) <= radius
                    bell[b, n, i, j] = np.exp(-(off**2) / (2 * (radius / 2) ** 2))
    score = lambda b, n, i, j: q[b, i, n] @ k[b, j, kv(q, k, n)]
    return blend(weights(q, k, both(allowed, near), logit=score) * bell, v)


B, T, N, H = 2, 9, 4, 8


def qkv(T=T, seed=0):
    return draws((B, T, N, H), (B, T, N, H), (B, T, N, H), seed=seed)


def test_local_predictive_sees_its_window_only_and_moves_its_center():
    q, k, v = qkv()
    center = jax.random.uniform(jax.random.key(3), (B, T, N), minval=0.0, maxval=T)
    weights = weights_of(luong_local_predictive, q, k, center, radius=2)
    off = np.arange(T) - np.asarray(center).transpose(0, 2, 1)[..., None]
    assert (weights[np.abs(off) > 2] == 0).all()
    assert (weights[np.abs(off) <= 2] > 0).all()
    loss = lambda c: luong_local_predictive(q, k, v, c, radius=2).sum()
    step = 1e-2 * jax.random.normal(jax.random.key(4), center.shape)
    slope = jnp.vdot(jax.grad(loss)(center), step)
    near(loss(center + step / 2) - loss(center - step / 2), slope, 2e-3)
    with pytest.raises(ValueError, match="radius: 0; expected at least 1"):
        luong_local_predictive(q, k, v, center, radius=0)
