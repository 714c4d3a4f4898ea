"""The oracle of `cog` in float64 loops, and its own tests."""

import jax.numpy as jnp
import numpy as np

from attnjax import masks
from attnjax.ops.softmax_core import (
    cog_attention,
    multi_head_attention,
)
from tests.helpers import draws, near, weights_of
from tests.ops.plain import blend, causal, weights


def cog_attention_oracle(q, k, v, allowed=None):
    def signed(x):
        s = np.sign(x) * np.exp(np.abs(x) - np.abs(x).max())
        return s / np.abs(s).sum()

    allowed = causal(q.shape[1], k.shape[1]) if allowed is None else allowed
    return blend(weights(q, k, allowed, signed), v)


B, T, N, H = 2, 9, 4, 8


def qkv(T=T, seed=0):
    return draws((B, T, N, H), (B, T, N, H), (B, T, N, H), seed=seed)


def test_cog_weights_are_signed_and_softmax_when_scores_are_positive():
    q, k, v = qkv()
    weights = weights_of(cog_attention, q, k)
    near(np.abs(weights).sum(-1), np.ones((B, N, T)))
    assert (weights < 0).any()
    q, k = jnp.abs(q), jnp.abs(k)
    near(cog_attention(q, k, v), multi_head_attention(q, k, v, mask=masks.causal))
