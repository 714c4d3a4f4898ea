"""Softpick: its oracle, and scores below zero."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import masks
from attnjax.ops.softmax_core import softpick_attention
from tests.helpers import qkv, weights_of
from tests.ops.plain import blend, causal, weights

B, T, N, H = 2, 9, 4, 8


def softpick_attention_oracle(q, k, v, allowed=None):
    def softpick(x):
        e = np.exp(x) - 1
        return np.maximum(e, 0) / (np.abs(e).sum() + 1e-6)

    allowed = causal(q.shape[1], k.shape[1]) if allowed is None else allowed
    return blend(weights(q, k, allowed, softpick), v)


def test_softpick_gives_zero_to_scores_below_zero_yet_moves_them():
    q, k, _ = qkv(B, T, N, H)
    scores = np.einsum("btnh,bsnh->bnts", q, k)
    weights = weights_of(softpick_attention, q, k, mask=masks.everything)
    assert (weights[scores <= 0] == 0).all() and (weights[scores > 1e-3] > 0).all()
    assert (weights.sum(-1) <= 1).all()
    v = jnp.ones((B, T, N, 1))
    below = k - 2 * jax.nn.relu(k * q[:, :1]) / q[:, :1]  # k . q_0 < 0 with every term
    k = k.at[:, 1].set(below[:, 1])
    grad = jax.grad(lambda k: softpick_attention(q[:, :1], k, v, mask=masks.everything).sum())(k)
    assert (jnp.abs(grad[:, 1]).max(-1) > 0).all()
