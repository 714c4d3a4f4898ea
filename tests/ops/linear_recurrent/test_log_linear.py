"""Log-linear attention: its oracle; which blocks a query has; levels that are too few."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.linear_recurrent import log_linear_attention
from tests.helpers import qkv, weights_of
from tests.ops.plain import kv

B, T, N, H = 2, 9, 4, 8


def level_of(t, j):
    """The block of t that holds j: those of a Fenwick tree, from t back."""
    level, start = 0, t
    while j < start:
        level = (start & -start).bit_length()
        start -= start & -start
    return level


def log_linear_attention_oracle(q, k, v, log_decay, scales):
    """Pair by pair."""
    (B, T, N), D = q.shape[:3], v.shape[-1]
    out = np.zeros((B, T, N, D))
    for b, t, n in np.ndindex(B, T, N):
        for j in range(t + 1):
            weight = q[b, t, n] @ k[b, j, kv(q, k, n)] * scales[b, t, n, level_of(t, j)]
            fade = np.exp(log_decay[b, j + 1 : t + 1, n].sum())
            out[b, t, n] += fade * weight * v[b, j, kv(q, k, n)]
    return out


def test_a_query_sees_blocks_that_double():
    """Token 11 = 1011 in binary: itself, tokens 10, 8 and 9, and 0 to 7, at levels 0, 1, 2, 4."""
    q = k = jnp.ones((1, 12, 1, 1))
    scales = jnp.broadcast_to(jnp.asarray([1.0, 10.0, 100.0, 1e3, 1e4]), (1, 12, 1, 5))
    weights = weights_of(log_linear_attention, q, k, jnp.zeros((1, 12, 1)), scales)
    np.testing.assert_array_equal(weights[0, 0, 11], [1e4] * 8 + [100] * 2 + [10, 1])


def test_too_few_levels_are_told():
    q, k, v = qkv(B, T, N, H)
    with pytest.raises(ValueError, match="R = 4, expected at least 5 levels for T = 9"):
        log_linear_attention(q, k, v, jnp.zeros((B, T, N)), jnp.ones((B, T, N, 4)))
