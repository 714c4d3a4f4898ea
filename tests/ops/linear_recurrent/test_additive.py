"""Additive attention: its oracle; tokens that are not valid; pooling."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import additive_attention, additive_attention_by_head
from tests.helpers import draw, near, qkv
from tests.ops import plain

B, T, N, H = 2, 9, 4, 8


def _pooled(q, k, v, scores):
    """scores (B,T,N), not yet divided by sqrt(H)."""
    (B, T, N, H), K = q.shape, k.shape[2]
    out = np.zeros((B, T, N, v.shape[3]))
    for b, n in np.ndindex(B, N):
        a = plain.softmax(scores[b, :, n] / np.sqrt(H))
        g = sum(a[t] * q[b, t, n] for t in range(T))
        for t in range(T):
            out[b, t, n] = v[b, t, n * K // N] * k[b, t, n * K // N] * g
    return out


def additive_attention_oracle(q, k, v, w):
    flat = q.reshape(*q.shape[:2], -1)
    return _pooled(q, k, v, flat @ w.reshape(len(w), -1).T)


def additive_attention_by_head_oracle(q, k, v, w):
    return _pooled(q, k, v, np.stack([q[:, :, n] @ w[n] for n in range(len(w))], -1))


W = draw(N, N, H, seed=7)


def test_a_token_that_is_not_valid_leaves_the_pooled_query():
    q, k, v = qkv(B, T, N, H)
    valid = jnp.ones((B, T), bool).at[1, 6:].set(False)
    short = additive_attention(q[1:, :6], k[1:, :6], v[1:, :6], W)
    spoiled = q.at[1, 6:].set(jnp.nan)
    near(additive_attention(spoiled, k, v, W, valid=valid)[1:, :6], short)
    grad = jax.grad(lambda q: additive_attention(q, k, v, W, valid=valid)[:, :6].sum())(spoiled)
    assert np.isfinite(grad).all() and not np.any(grad[1, 6:])


def test_a_head_is_pooled_by_the_queries_of_all_heads():
    q = jnp.zeros((1, 2, 2, 1)).at[0, :, 0, 0].set(jnp.asarray([1.0, 3.0]))
    q = q.at[0, 1, 1, 0].set(np.log(3.0))  # only the second token has a query of the second head
    one = jnp.ones((1, 2, 2, 1))
    w = jnp.zeros((2, 2, 1)).at[0, 1].set(1.0)  # which the first head is pooled by: 1/4, 3/4
    near(additive_attention(q, one, one, w)[0, :, 0, 0], [2.5, 2.5])
    near(additive_attention_by_head(q, one, one, jnp.zeros((2, 1)))[0, :, 0, 0], [2.0, 2.0])


def test_pooling_weights_sum_to_one():
    q, k, v = qkv(B, T, N, H)
    same = jnp.broadcast_to(q[:, :1], q.shape)
    near(additive_attention(same, k, v, W), same * k * v)
