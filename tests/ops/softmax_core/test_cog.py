"""Cog attention: its oracle, signed weights, softmax where scores are positive."""

import jax.numpy as jnp
import numpy as np

from attnjax import masks
from attnjax.ops.softmax_core import cog_attention, multi_head_attention
from tests.helpers import near, qkv, weights_of
from tests.ops.plain import blend, causal, weights

B, T, N, H = 2, 9, 4, 8


def cog_attention_oracle(q, k, v, allowed=None):
    def signed(x):
        s = np.sign(x) * np.exp(np.abs(x) - np.abs(x).max())
        return s / np.abs(s).sum()

    allowed = causal(q.shape[1], k.shape[1]) if allowed is None else allowed
    return blend(weights(q, k, allowed, signed), v)


def test_cog_weights_are_signed_and_softmax_when_scores_are_positive():
    q, k, v = qkv(B, T, N, H)
    weights = weights_of(cog_attention, q, k)
    near(np.abs(weights).sum(-1), np.ones((B, N, T)))
    assert (weights < 0).any()
    q, k = jnp.abs(q), jnp.abs(k)
    near(cog_attention(q, k, v), multi_head_attention(q, k, v, mask=masks.causal))
