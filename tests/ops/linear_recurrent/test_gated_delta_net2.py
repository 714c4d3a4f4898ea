"""Gated DeltaNet-2: its oracle; channels that are not to be erased keep what they hold."""

import jax.numpy as jnp
import numpy as np

from attnjax.core.recurrence.linear import State
from attnjax.ops.linear_recurrent import gated_delta_net2
from tests.helpers import draws, near, qkv
from tests.ops.plain import kv, unit

B, T, N, H = 2, 9, 4, 8


def gated_delta_net2_oracle(q, k, v, log_decay, erase, write):
    """The state fades; what b k reads of it goes, and w v comes, along k."""
    (B, T, N, H), D, out = q.shape, v.shape[-1], []
    q, k = unit(q), unit(k)
    for b, n in np.ndindex(B, N):
        S, g = np.zeros((H, D)), kv(q, k, n)
        for t in range(T):
            S = np.exp(log_decay[b, t, n])[:, None] * S
            old = (erase[b, t, n] * k[b, t, g]) @ S
            S = S + np.outer(k[b, t, g], write[b, t, n] * v[b, t, g] - old)
            out.append(q[b, t, n] @ S)
    return np.reshape(out, (B, N, T, D)).transpose(0, 2, 1, 3)


def test_a_value_channel_that_is_not_written_is_erased_all_the_same():
    q, k, v = qkv(B, 1, N, H)
    (memory,) = draws((B, N, H, H), seed=3)
    still, ones = jnp.zeros((B, 1, N, H)), jnp.ones((B, 1, N, H))
    _, last = gated_delta_net2(
        q, k, v, still, ones, ones.at[..., 0].set(0.0), state=State(memory), return_state=True
    )
    key = k[:, 0] / jnp.linalg.norm(k[:, 0], axis=-1, keepdims=True)
    held = jnp.einsum("BNH,BNHD->BND", key, last.memory)
    near(held, v[:, 0].at[..., 0].set(0.0))
