"""RWKV-6: its oracle; the bonus of the own token; the state is read first."""

import jax.numpy as jnp
import numpy as np

from attnjax.core.recurrence.linear import State
from attnjax.ops.linear_recurrent import rwkv6
from tests.helpers import draws, near, qkv, weights_of
from tests.ops.plain import sums

B, T, N, H = 2, 9, 4, 8


def rwkv6_oracle(q, k, v, log_decay, u):
    return sums(q, k, v, log_decay, own=u, late=1)


def test_rwkv6_without_a_bonus_does_not_see_its_own_token():
    q, k, v = qkv(B, T, N, H)
    (log_decay,) = draws((B, T, N, H), seed=3)
    log_decay = -jnp.exp(log_decay)
    weights = weights_of(rwkv6, q, k, log_decay, jnp.zeros((N, H)))
    own = np.arange(T)
    assert not np.any(weights[:, :, own, own]) and np.any(weights[:, :, 1:, 0])
    (u,) = draws((N, H), seed=4)
    weights = weights_of(rwkv6, q, k, log_decay, u)
    near(weights[:, :, own, own], jnp.einsum("BTNH,NH,BTNH->BNT", q, u, k))


def test_rwkv6_reads_the_given_state_first():
    q, k, v = qkv(B, 1, N, H)
    (memory,) = draws((B, N, H, H), seed=3)
    log_decay, u = jnp.full((B, 1, N, H), -jnp.inf), jnp.zeros((N, H))
    out, last = rwkv6(q, k, v, log_decay, u, state=State(memory), return_state=True)
    near(out[:, 0], jnp.einsum("BNH,BNHD->BND", q[:, 0], memory))
    near(last.memory, k[:, 0, :, :, None] * v[:, 0, :, None])
