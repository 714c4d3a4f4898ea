"""The oracle of `rala` in float64 loops, and its own tests."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import features, linear_attend, normalizers
from attnjax.ops.linear_recurrent import (
    efficient_attention,
    exponential_attention,
    exponential_attention_full,
    fast_attention,
    fast_attention_full,
    favor_attention,
    favor_attention_full,
    inline_attention,
    rala,
    taylor_shift,
    taylor_shift_direct,
)
from attnjax.probes import numerical_rank
from tests.helpers import draws, qkv, weights_of
from tests.ops import plain
from tests.ops.plain import elu1_kernelized

B, T, N, H = 2, 9, 4, 8


def rala_oracle(q, k, v, gate):
    (B, T, N, H), (S, K, D) = q.shape, v.shape[1:]
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        keys, values = k[b, :, n * K // N], v[b, :, n * K // N]
        a = S * plain.softmax(keys @ q[b, :, n].mean(0) / np.sqrt(H))
        for i in range(T):
            w = np.array(
                [a[j] * (elu1_kernelized(q[b, i, n]) @ elu1_kernelized(keys[j])) for j in range(S)]
            )
            out[b, i, n] = gate[b, i, n] * (w @ values / w.sum())
    return out


def test_rank_augmentation_raises_the_rank_of_the_output():
    D, S, width = 16, 24, 4
    q, k, v, gate = draws((1, S, 1, width), (1, S, 1, width), (1, S, 1, D), (1, S, 1, D))
    rank = lambda out: int(numerical_rank(out[0, :, 0]))
    assert rank(rala(q, k, v, jnp.ones_like(gate))) == width
    assert rank(rala(q, k, v, gate)) == D


TEMPERATURE = jnp.asarray([0.5, 1.0, 2.0, 4.0])


PROJECTION = features.orthogonal_rows(jax.random.key(7), 16, H)


OPEN = jnp.ones((B, T, N, T))


# What normalizes its weights: their rows sum to one.
NORMALIZED = {
    "efficient": efficient_attention,
    "exponential": exponential_attention,
    "exponential full": exponential_attention_full,
    "fast": fast_attention,
    "fast full": fast_attention_full,
    "favor": lambda q, k, v: favor_attention(q, k, v, PROJECTION),
    "favor full": lambda q, k, v: favor_attention_full(q, k, v, PROJECTION),
    "inline": inline_attention,
    "inline of relu": lambda q, k, v: inline_attention(q, k, v, phi=features.relu),
    "rala": lambda q, k, v: rala(q, k, v, OPEN),
    "relu": lambda q, k, v: linear_attend(
        features.relu(q), features.relu(k), v, normalize=normalizers.divide, block=None
    ),
    "taylor": lambda q, k, v: taylor_shift(q, k, v, TEMPERATURE),
    "taylor direct": lambda q, k, v: taylor_shift_direct(q, k, v, TEMPERATURE),
}


def test_the_global_query_weighs_the_tokens():
    q, k, _ = qkv(B, T, N, H)
    mean = q.mean(1, keepdims=True)
    liked = k.at[:, 4].set(20.0 * mean[:, 0] / jnp.linalg.norm(mean[:, 0], axis=-1, keepdims=True))
    weights = weights_of(NORMALIZED["rala"], q, liked)
    assert weights[..., 4].mean() > 0.9
