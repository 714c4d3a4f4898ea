"""Threshold relative attention: oracles by both gates; weak tokens that change nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.sparse_select import threshold_forgetting_attention, threshold_relative_attention
from tests.helpers import draw, near, qkv
from tests.ops.plain import kv


def attended(q, k, v, theta, step):
    """`step(b, i, n, l)` is what key l, which stays, adds for the keys before it."""
    B, T, N, H = q.shape
    out = np.zeros((B, T, N, v.shape[-1]))
    for b, i, n in np.ndindex(B, T, N):
        g, faded, found = kv(q, k, n), 0.0, []
        for j in range(i, -1, -1):
            s = q[b, i, n] @ k[b, j, g] / np.sqrt(H)
            if s > theta:
                found.append((s + faded, v[b, j, g]))
                faded += step(b, i, n, j)
        if found:
            logits = np.asarray([s for s, _ in found])
            w = np.exp(logits - logits.max())
            out[b, i, n] = (w / w.sum()) @ np.asarray([x for _, x in found])
    return out


def threshold_relative_attention_oracle(q, k, v, log_f, theta=0.0, block=128):
    return attended(q, k, v, theta, lambda b, i, n, l: log_f[b, i, n])


def threshold_forgetting_attention_oracle(q, k, v, log_f, theta=0.0, block=128):
    return attended(q, k, v, theta, lambda b, i, n, l: log_f[b, l, n])


@pytest.mark.parametrize("op", [threshold_relative_attention, threshold_forgetting_attention])
def test_tokens_below_the_threshold_may_stand_anywhere(op):
    q, k, v = qkv(1, 6, 2, 4)
    q = jnp.abs(q)
    log_f = -jnp.abs(draw(1, 6, 2, seed=7))
    weak = lambda x, new: jnp.insert(x, jnp.asarray([2, 4, 4]), new, axis=1)
    longer = weak(q, 1.0), weak(k, -1.0), weak(v, 100.0), weak(log_f, -3.0)
    kept = np.asarray([0, 1, 3, 4, 7, 8])
    near(op(*longer, block=4)[:, kept], op(q, k, v, log_f, block=4))


@pytest.mark.parametrize("op", [threshold_relative_attention, threshold_forgetting_attention])
def test_a_query_without_strong_keys_gives_zero(op):
    q, k, v = qkv(1, 5, 2, 4)
    out = op(jnp.abs(q), -jnp.abs(k), v, jnp.zeros((1, 5, 2)), block=2)
    assert not np.asarray(out).any()
