"""Rank-augmented attention: its oracle; the rank; the global query."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import rala
from attnjax.probes import numerical_rank
from tests.helpers import draws, qkv, weights_of
from tests.ops import plain
from tests.ops.plain import elu1

B, T, N, H = 2, 9, 4, 8


def rala_oracle(q, k, v, gate):
    (B, T, N, H), (S, K, D) = q.shape, v.shape[1:]
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        keys, values = k[b, :, n * K // N], v[b, :, n * K // N]
        a = S * plain.softmax(keys @ q[b, :, n].mean(0) / np.sqrt(H))
        for i in range(T):
            w = np.array([a[j] * (elu1(q[b, i, n]) @ elu1(keys[j])) for j in range(S)])
            out[b, i, n] = gate[b, i, n] * (w @ values / w.sum())
    return out


def test_rank_augmentation_raises_the_rank_of_the_output():
    D, S, width = 16, 24, 4
    q, k, v, gate = draws((1, S, 1, width), (1, S, 1, width), (1, S, 1, D), (1, S, 1, D))
    rank = lambda out: int(numerical_rank(out[0, :, 0]))
    assert rank(rala(q, k, v, jnp.ones_like(gate))) == width
    assert rank(rala(q, k, v, gate)) == D


def test_the_global_query_weighs_the_tokens():
    q, k, _ = qkv(B, T, N, H)
    mean = q.mean(1, keepdims=True)
    liked = k.at[:, 4].set(20.0 * mean[:, 0] / jnp.linalg.norm(mean[:, 0], axis=-1, keepdims=True))
    weights = weights_of(lambda q, k, v: rala(q, k, v, jnp.ones((B, T, N, T))), q, liked)
    assert weights[..., 4].mean() > 0.9
