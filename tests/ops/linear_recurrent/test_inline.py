"""The oracle of `inline` in float64 loops, and its own tests."""

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
from tests.helpers import near, qkv, weights_of

B, T, N, H = 2, 9, 4, 8


def inline_attention_oracle(q, k, v):
    (B, T, N, _), (S, K, D) = q.shape, v.shape[1:]
    out = np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        s = np.array([q[b, i, n] @ k[b, j, n * K // N] for j in range(S)])
        out[b, i, n] = (s - s.mean() + 1 / S) @ v[b, :, n * K // N]
    return out


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


def test_inline_tells_collinear_queries_apart_and_division_does_not():
    q, k, _ = qkv(B, T, N, H)
    divided = NORMALIZED["relu"]
    near(weights_of(divided, 3.0 * q, k), weights_of(divided, q, k))
    for name in ("inline", "inline of relu"):
        away = np.abs(weights_of(NORMALIZED[name], 3 * q, k) - weights_of(NORMALIZED[name], q, k))
        assert (away.max(-1) > 0.1).all()
