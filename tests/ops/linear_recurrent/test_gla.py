"""Gated linear attention: its oracle; channels fade apart."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import gla
from tests.helpers import near
from tests.ops.plain import sums


def gla_oracle(q, k, v, log_decay):
    return sums(q, k, v, log_decay)


def test_gla_reads_what_each_channel_has_left():
    """Two channels, one that keeps and one that forgets: only the first is read later on."""
    q = jnp.ones((1, 5, 1, 2))
    k, v = jnp.zeros_like(q).at[:, 0].set(1.0), jnp.ones((1, 5, 1, 1))
    log_decay = jnp.broadcast_to(jnp.array([0.0, -2.0]), (1, 5, 1, 2))
    near(gla(q, k, v, log_decay)[0, :, 0, 0], 1 + np.exp(-2.0 * np.arange(5)))
