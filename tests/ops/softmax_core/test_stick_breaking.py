"""Stick-breaking attention: its oracle, and a stick that is used up."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.softmax_core import stick_breaking_attention
from tests.helpers import draw, near, qkv
from tests.ops.plain import kv


def stick_breaking_attention_oracle(q, k, v, block):
    B, T, N, H = q.shape
    out = np.zeros((B, T, N, v.shape[-1]))
    for b, i, n in np.ndindex(B, T, N):
        g, left = kv(q, k, n), 1.0
        for j in range(i - 1, -1, -1):
            taken = 1 / (1 + np.exp(-(q[b, i, n] @ k[b, j, g]) / np.sqrt(H)))
            out[b, i, n] += left * taken * v[b, j, g]
            left *= 1 - taken
        out[b, i, n] += left * v[b, i, g]
    return out


def test_a_sure_key_takes_all_and_hides_those_before_it():
    q, k, v = qkv(1, 9, 2, 4)
    q, k = jnp.ones_like(q), jnp.zeros_like(k).at[:, 3].set(1e4)
    out = stick_breaking_attention(q, k, v, block=4)
    near(out[:, 4], v[:, 3])
    far = stick_breaking_attention(q, k, v.at[:, :3].set(draw(1, 3, 2, 4, seed=9)), block=4)
    near(out[:, 4:], far[:, 4:])
