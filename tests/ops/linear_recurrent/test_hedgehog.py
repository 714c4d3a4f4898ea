"""Hedgehog: its oracle; heads that share keys."""

import jax.numpy as jnp
import numpy as np

from attnjax.core import features
from attnjax.ops.linear_recurrent import hedgehog_attention
from tests.helpers import draws, near, qkv
from tests.ops.plain import softmax

B, T, N, H = 2, 9, 4, 8


def hedgehog_attention_oracle(q, k, v, w_q, w_k):
    (B, T, N, _), (K, D) = q.shape, v.shape[2:]
    out = np.zeros((B, T, N, D))
    for b, t, n in np.ndindex(B, T, N):
        m = n * K // N
        phi = lambda y: np.concatenate([softmax(y), softmax(-y)])
        keys = [phi(k[b, j, m] @ w_k[m]) for j in range(t + 1)]
        w = np.array([phi(q[b, t, n] @ w_q[n]) @ key for key in keys])
        out[b, t, n] = sum(w[j] * v[b, j, m] for j in range(t + 1)) / w.sum()
    return out


def test_hedgehog_heads_may_share_keys():
    q, k, v = qkv(B, T, N, H)
    w_q, w_k = draws((N, H, 3), (2, H, 3))
    twice = lambda x, axis: jnp.repeat(x, 2, axis=axis)
    few = hedgehog_attention(q, k[:, :, :2], v[:, :, :2], w_q, w_k)
    many = [twice(x[:, :, :2], 2) for x in (k, v)]
    near(few, hedgehog_attention(q, *many, w_q, twice(w_k, 0)))


def test_released_and_printed_features():
    rows = lambda *rows: jnp.array(rows, float)[None, :, None, :]
    q, k, v = rows((1, 1), (1, 1)), rows((0, 0), (2, 2)), rows((0,), (1,))
    eye = jnp.eye(2)[None]
    near(hedgehog_attention(q, k, v, eye, eye)[0, 1, 0, 0], 0.5, 1e-6)
    printed = hedgehog_attention(q, k, v, eye, eye, log_phi=features.log_hedgehog)
    near(printed[0, 1, 0, 0], 0.8671, 1e-4)
