"""Column anchors: the oracle, what a key gives, gauges, softmax with the sides exchanged."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.softmax_core import column_attention
from tests.helpers import draw, near, qkv, weights_of
from tests.ops.plain import blend, kv

B, T, S, N, K, H = 2, 6, 9, 4, 2, 8


def column_attention_oracle(q, k, v, scale=None):
    (B, T, N, H), S = q.shape, k.shape[1]
    scale = 1 / np.sqrt(H) if scale is None else scale
    w = np.zeros((B, N, T, S))
    for b, n, j in np.ndindex(B, N, S):
        e = np.array([np.exp(scale * q[b, i, n] @ k[b, j, kv(q, k, n)]) for i in range(T)])
        w[b, n, :, j] = e / e.sum()
    return blend(w, v)


def test_each_key_gives_one_in_all():
    q, k, _ = qkv(B, T, N, H, S=S, K=K)
    near(weights_of(column_attention, q, k).sum(-2), np.ones((B, N, S)))


def test_a_number_for_each_key_changes_nothing_and_one_for_each_query_does():
    q, k, v = qkv(B, T, N, H, S=S)
    with_one = lambda x: jnp.concatenate([x, jnp.ones((*x.shape[:3], 1))], -1)
    with_any = lambda x: jnp.concatenate([x, draw(*x.shape[:3], 1, seed=5)], -1)
    scale = H**-0.5
    want = column_attention(q, k, v)
    near(column_attention(with_one(q), with_any(k), v, scale=scale), want, 1e-4)
    assert np.abs(column_attention(with_any(q), with_one(k), v, scale=scale) - want).max() > 0.1
