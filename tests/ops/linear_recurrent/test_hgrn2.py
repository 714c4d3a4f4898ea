"""HGRN2: its oracle; channels are averages."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import hgrn2
from tests.helpers import draws, near
from tests.ops.plain import sums

B, T, N, H = 2, 9, 4, 8


def hgrn2_oracle(q, log_forget, v):
    return sums(q, 1 - np.exp(log_forget), v, log_forget)


def test_hgrn2_keeps_each_channel_an_average_of_values():
    """The weights of a channel sum to 1 - product of its gates, so a state stays bounded."""
    q, log_f = draws((B, T, N, H), (B, T, N, H))
    log_f = jax.nn.log_sigmoid(log_f)
    ones = jnp.ones((B, T, N, 1))
    _, state = hgrn2(q, log_f, ones, return_state=True)
    near(state.memory[..., 0], 1 - jnp.exp(log_f.sum(1)))
