"""Additive attention: its oracle; tokens that are not valid; pooling."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import additive_attention
from tests.helpers import draw, near, qkv
from tests.ops import plain

B, T, N, H = 2, 9, 4, 8


def additive_attention_oracle(q, k, v, w):
    (B, T, N, H), K = q.shape, k.shape[2]
    out = np.zeros((B, T, N, v.shape[3]))
    for b, n in np.ndindex(B, N):
        a = plain.softmax(np.array([w[n] @ q[b, t, n] / np.sqrt(H) for t in range(T)]))
        g = sum(a[t] * q[b, t, n] for t in range(T))
        for t in range(T):
            out[b, t, n] = v[b, t, n * K // N] * k[b, t, n * K // N] * g
    return out


W = draw(N, H, seed=7)


def test_a_token_that_is_not_valid_leaves_the_pooled_query():
    q, k, v = qkv(B, T, N, H)
    valid = jnp.ones((B, T), bool).at[1, 6:].set(False)
    short = additive_attention(q[1:, :6], k[1:, :6], v[1:, :6], W)
    spoiled = q.at[1, 6:].set(jnp.nan)
    near(additive_attention(spoiled, k, v, W, valid=valid)[1:, :6], short)
    grad = jax.grad(lambda q: additive_attention(q, k, v, W, valid=valid)[:, :6].sum())(spoiled)
    assert np.isfinite(grad).all() and not np.any(grad[1, 6:])


def test_pooling_weights_sum_to_one():
    q, k, v = qkv(B, T, N, H)
    same = jnp.broadcast_to(q[:, :1], q.shape)
    near(additive_attention(same, k, v, W), same * k * v)
