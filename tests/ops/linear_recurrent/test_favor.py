"""FAVOR+: its oracles; how near it comes to softmax."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import features, linear_attend, normalizers
from attnjax.core.pairwise import attend as engine
from attnjax.ops.linear_recurrent import favor_attention_full
from tests.helpers import qkv
from tests.ops.plain import weighted

B, T, N, H = 2, 9, 4, 8


def _favor(projection):
    def feature(w, x):
        y = x / len(x) ** 0.25
        return math.exp(w @ y - y @ y / 2)

    return lambda x, y: sum(feature(w, x) * feature(w, y) for w in projection) / len(projection)


def favor_attention_oracle(q, k, v, projection):
    return weighted(q, k, v, _favor(projection), causal=True)


def favor_attention_full_oracle(q, k, v, projection):
    return weighted(q, k, v, _favor(projection), causal=False)


def test_favor_approaches_softmax_as_features_grow():
    q, k, v = qkv(B, T, N, H, scale=0.5)
    exact = engine.attend(q, k, v)

    @functools.partial(jax.jit, static_argnums=0)
    def error(R, key):
        projection = features.orthogonal_rows(key, R, H)
        return jnp.abs(favor_attention_full(q, k, v, projection) - exact).mean()

    keys = jax.random.split(jax.random.key(1), 4)
    coarse, fine = (np.mean([error(R, key) for key in keys]) for R in (64, 64 * 64))
    assert fine < 0.04 and 4 < coarse / fine < 16  # 8 = sqrt(64)


def test_positive_features_beat_fourier_features_as_attention():
    q, k, v = qkv(B, T, N, H, scale=1.5)
    projection = features.orthogonal_rows(jax.random.key(7), 16, H)
    phi = features.trigonometric(projection)
    fourier = linear_attend(
        phi(q * H**-0.25), phi(k * H**-0.25), v, normalize=normalizers.divide, block=None
    )
    exact = engine.attend(q, k, v)
    error = lambda out: np.abs(np.asarray(out) - exact).max()
    assert error(favor_attention_full(q, k, v, projection)) < error(fourier) / 3
