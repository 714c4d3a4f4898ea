"""Kimi Delta Attention: its oracle; a channel that has faded is neither read nor corrected."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import gla, kda
from tests.helpers import draw, near, orthonormal, qkv
from tests.ops.plain import unit

B, T, N, H = 2, 9, 4, 8


def kda_oracle(q, k, v, beta, log_decay):
    """Each query walks back: what it reads at token j passes on as a * (I - beta k k^T) q."""
    (B, T, N, _), (K, D) = q.shape, v.shape[2:]
    q, k, out = unit(q), unit(k), np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        c = q[b, i, n]
        for j in reversed(range(i + 1)):
            key, value, strength = k[b, j, n * K // N], v[b, j, n * K // N], beta[b, j, n]
            out[b, i, n] += strength * (c @ key) * value
            c = np.exp(log_decay[b, j, n]) * (c - strength * (c @ key) * key)
    return out


def test_keys_that_are_orthogonal_correct_nothing():
    """Without fading: the sums of gla then, of unit keys."""
    q, _, v = qkv(B, H, N, H)
    k = orthonormal(B, N, H, H).swapaxes(1, 2)
    q = q / jnp.linalg.norm(q, axis=-1, keepdims=True)
    still = jnp.zeros((B, H, N, H))
    near(kda(q, k, v, jnp.ones((B, H, N)), still), gla(q, k, v, still))


def test_a_channel_fades_before_the_correction():
    """Of a key with two channels one has faded: half the old value is left to take back."""
    key = jnp.zeros((1, 2, 1, H)).at[..., :2].set(np.sqrt(0.5))
    v = draw(1, 2, 1, H)
    log_decay = jnp.zeros((1, 2, 1, H)).at[0, 1, 0, 0].set(-jnp.inf)
    out = kda(key, key, v, jnp.ones((1, 2, 1)), log_decay)
    near(out, v)
    other = jnp.zeros_like(key).at[..., 1].set(1.0)
    seen = kda(other, key, v, jnp.ones((1, 2, 1)), log_decay)[0, 1, 0]
    near(seen, np.sqrt(0.5) * (v[0, 1, 0] + 0.5 * v[0, 0, 0]))
