"""Hedgehog: its oracle; heads that share keys."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import hedgehog_attention
from tests.helpers import draws, near, qkv

B, T, N, H = 2, 9, 4, 8


def hedgehog_attention_oracle(q, k, v, w_q, w_k):
    (B, T, N, _), (K, D) = q.shape, v.shape[2:]
    out = np.zeros((B, T, N, D))
    for b, t, n in np.ndindex(B, T, N):
        m = n * K // N
        a = q[b, t, n] @ w_q[n]
        y = [k[b, j, m] @ w_k[m] for j in range(t + 1)]
        w = np.array([np.exp(a + c).sum() + np.exp(-a - c).sum() for c in y])
        out[b, t, n] = sum(w[j] * v[b, j, m] for j in range(t + 1)) / w.sum()
    return out


def test_hedgehog_heads_may_share_keys():
    q, k, v = qkv(B, T, N, H)
    w_q, w_k = draws((N, H, 3), (2, H, 3))
    twice = lambda x, axis: jnp.repeat(x, 2, axis=axis)
    few = hedgehog_attention(q, k[:, :, :2], v[:, :, :2], w_q, w_k)
    many = [twice(x[:, :, :2], 2) for x in (k, v)]
    near(few, hedgehog_attention(q, *many, w_q, twice(w_k, 0)))
