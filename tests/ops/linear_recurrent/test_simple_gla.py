"""Linear attention with one gate a head: its oracle; a gate of zero."""

import jax.numpy as jnp

from attnjax.core.recurrence.linear import linear_attend
from attnjax.ops.linear_recurrent import simple_gla
from tests.helpers import near, qkv
from tests.ops.plain import sums

B, T, N, H = 2, 9, 4, 8


def simple_gla_oracle(q, k, v, log_decay):
    return sums(q, k, v, log_decay)


def test_a_gate_of_zero_forgets_what_was_before():
    q, k, v = qkv(B, T, N, H)
    cut = jnp.zeros((B, T, N)).at[:, 5].set(-jnp.inf)
    near(simple_gla(q, k, v, cut)[:, 5:], linear_attend(q[:, 5:], k[:, 5:], v[:, 5:]))
