"""Retention: its oracle; decays of the paper."""

import math

import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import retention, retention_log_decays
from tests.helpers import near, qkv, weights_of
from tests.ops.plain import sums

B, T, N, H = 2, 9, 4, 8


def retention_oracle(q, k, v):
    B, T, N, H = q.shape
    gamma = 1 - 2.0 ** (-5 - np.arange(N))
    return sums(q / np.sqrt(H), k, v, np.broadcast_to(np.log(gamma), (B, T, N)))


def test_retention_has_the_decays_of_its_paper():
    near(jnp.exp(retention_log_decays(3)), [1 - 2.0**-5, 1 - 2.0**-6, 1 - 2.0**-7], 1e-7)
    q, k, _ = qkv(B, T, N, H)
    q, k = jnp.ones_like(q), jnp.ones_like(k)
    weights = weights_of(retention, q, k)
    near(weights[0, 0, 7, 4], (1 - 2.0**-5) ** 3 * math.sqrt(H))
    near(weights[0, 3, 7, 4], (1 - 2.0**-8) ** 3 * math.sqrt(H))
