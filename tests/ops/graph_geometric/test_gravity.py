"""Gravity: its oracle; the dense kernel, lone nodes, gradients to the space, turns and order."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.graph_geometric import gravity_pool
from tests.helpers import draws, near, run

B, T, W, R = 2, 9, 5, 3


def gravity_pool_oracle(x, points, radius=0.1, strength=3.0, most=16):
    out = np.zeros_like(x)
    s = points / np.sqrt((points**2).sum(-1, keepdims=True))
    f = x / np.abs(x).sum(-1, keepdims=True)
    for b, i in np.ndindex(*x.shape[:2]):
        d = ((s[b] - s[b, i]) ** 2).sum(-1)
        others = sorted((j for j in range(x.shape[1]) if j != i), key=lambda j: d[j])
        for j in others[:most]:
            if d[j] < radius**2:
                out[b, i] += np.exp(-strength * d[j] / radius**2) * f[b, j]
    return out


def test_a_radius_of_two_is_the_whole_sphere():
    x, points = draws((B, T, W), (B, T, R))
    s = points / jnp.linalg.norm(points, axis=-1, keepdims=True)
    square = jnp.sum((s[:, :, None] - s[:, None]) ** 2, axis=-1)
    kernel = jnp.exp(-3 * square / 4.0) * (1 - jnp.eye(T))
    near(kernel, jnp.swapaxes(kernel, 1, 2))
    f = x / jnp.abs(x).sum(-1, keepdims=True)
    near(run(gravity_pool, x, points, radius=2.0), kernel @ f, 1e-4)


def test_gradients_reach_the_space_and_turns_change_nothing():
    x, points = draws((B, T, W), (B, T, R))
    slope = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(gravity_pool(x, p, radius=1.0)))))(points)
    assert np.any(slope) and np.isfinite(slope).all()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(R, R)))[0]
    got = run(gravity_pool, x, points @ jnp.asarray(turn, points.dtype), radius=1.0)
    near(got, run(gravity_pool, x, points, radius=1.0), 1e-4)


def test_nodes_in_another_order():
    x, points = draws((B, T, W), (B, T, R))
    order = np.random.default_rng(1).permutation(T)
    op = lambda x, points: run(gravity_pool, x, points, radius=1.2, most=3)
    near(op(x[:, order], points[:, order]), op(x, points)[:, order])
