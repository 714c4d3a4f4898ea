"""The gated delta rule: its oracle; the gate comes before the correction."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import gated_delta_net
from tests.helpers import draw, near, orthonormal, qkv
from tests.ops.plain import unit

B, T, N, H = 2, 9, 4, 8


def gated_delta_net_oracle(q, k, v, beta, log_decay):
    """Each query walks back: what it reads at token j passes on as a (I - beta k k^T) q."""
    (B, T, N, _), (K, D) = q.shape, v.shape[2:]
    q, k, out = unit(q), unit(k), np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        c = q[b, i, n]
        for j in reversed(range(i + 1)):
            key, value, strength = k[b, j, n * K // N], v[b, j, n * K // N], beta[b, j, n]
            out[b, i, n] += strength * (c @ key) * value
            c = np.exp(log_decay[b, j, n]) * (c - strength * (c @ key) * key)
    return out


def test_the_gate_fades_before_the_correction():
    """With beta = 1 on one key the new value is read back, however much the state has faded."""
    q, _, v = qkv(B, T, N, H)
    k = jnp.broadcast_to(orthonormal(B, 1, N, 1, H)[..., 0, :], v.shape)
    log_decay = -jnp.abs(draw(B, T, N, seed=3))
    near(gated_delta_net(k, k, v, jnp.ones((B, T, N)), log_decay), v)
