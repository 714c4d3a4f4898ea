"""Momentum DeltaNet: its oracle, and Titans' matrix memory, which is the same recurrence."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import momentum_delta_net, titans_memory
from tests.helpers import draw, near, qkv
from tests.ops.plain import kv


def momentum_delta_net_oracle(q, k, v, log_decay, log_momentum, beta, eta, chunk):
    B, T, N, H = q.shape
    unit = lambda x: x / np.linalg.norm(x)
    out = np.zeros((B, T, N, v.shape[-1]))
    for b, n in np.ndindex(B, N):
        memory, momentum = np.zeros((2, H, v.shape[-1]))
        for t in range(T):
            g = kv(q, k, n)
            key = unit(k[b, t, g])
            faded = np.exp(log_decay[b, t, n]) * memory
            momentum = np.exp(log_momentum[b, t, n]) * momentum
            momentum = momentum + eta[b, t, n] * np.outer(key, v[b, t, g] - key @ faded)
            memory = faded + beta[b, t, n] * momentum
            out[b, t, n] = unit(q[b, t, n]) @ memory
    return out


def test_without_decay_it_is_titans_memory_of_a_matrix():
    q, k, v = qkv(1, 9, 2, 4)
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    mu, eta = (jnp.abs(draw(1, 9, 2, seed=s)) * 0.3 for s in (5, 6))
    zero = jnp.zeros_like(mu)
    got = momentum_delta_net(q, k, v, zero, jnp.log(mu), zero + 1.0, eta, chunk=4)
    weights = (jnp.zeros((2, 4, 4)),)
    near(got, titans_memory(unit(q), unit(k), v, mu, eta / 2, zero, weights, chunk=1), 1e-5)


def test_a_step_that_is_not_made_is_made_later():
    """beta = 0 leaves the memory; the momentum waits."""
    q, k, v = qkv(1, 3, 1, 4)
    ones = jnp.ones((1, 3, 1))
    beta = jnp.asarray([[[0.0], [0.0], [1.0]]])
    eta = jnp.asarray([[[1.0], [0.0], [0.0]]])
    k = jnp.broadcast_to(k[:, :1], k.shape)
    out = momentum_delta_net(k, k, v, 0 * ones, 0 * ones, beta, eta, chunk=2)
    near(out[:, :2], 0 * v[:, :2])
    near(out[:, 2], v[:, 0])
