"""Comba: its oracle; the feedback reads the state before it fades."""

import jax.numpy as jnp
import numpy as np

from attnjax.core.recurrence.linear import State
from attnjax.ops.linear_recurrent import comba, gated_delta_net
from tests.helpers import draw, near, qkv
from tests.ops.plain import kv

B, T, N, H = 2, 9, 4, 8


def comba_oracle(q, k, p, v, beta, log_decay):
    """With the transition as a matrix, values by keys: S (a - beta p k^T) + beta v k^T."""
    (B, T, N, H), D, out = q.shape, v.shape[-1], []
    for b, n in np.ndindex(B, N):
        S, g = np.zeros((D, H)), kv(q, k, n)
        for t in range(T):
            key, back, strength = k[b, t, g], p[b, t, g], beta[b, t, n]
            transition = np.exp(log_decay[b, t, n]) * np.eye(H) - strength * np.outer(back, key)
            S = S @ transition + strength * np.outer(v[b, t, g], key)
            out.append(S @ q[b, t, n])
    return np.reshape(out, (B, N, T, D)).transpose(0, 2, 1, 3)


def test_what_is_read_back_has_not_faded():
    """A state that is forgotten at once is read once more."""
    q, k, v = qkv(B, 1, N, H)
    p, memory = draw(B, 1, N, H, seed=3), draw(B, N, H, H, seed=4)
    gone, ones = jnp.full((B, 1, N), -jnp.inf), jnp.ones((B, 1, N))
    _, last = comba(q, k, p, v, ones, gone, state=State(memory), return_state=True)
    left = v[:, 0] - jnp.einsum("BNH,BNHD->BND", p[:, 0], memory)
    near(last.memory, k[:, 0, :, :, None] * left[:, :, None])


def test_feedback_by_the_faded_key_is_the_gated_delta_rule():
    q, k, v = qkv(B, T, N, H)
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    q, k = unit(q), unit(k)
    beta = jnp.asarray(np.random.default_rng(5).uniform(0, 1, (B, T, N)))
    log_decay = -jnp.abs(draw(B, T, N, seed=6))
    faded = jnp.exp(log_decay)[..., None] * k
    got = comba(q, k, faded, v, beta, log_decay)
    near(got, gated_delta_net(q, k, v, beta, log_decay), 2e-5)
