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
        return np.maximum(e, 0) / (np.abs(e).sum() + 1e-8)

    allowed = causal(q.shape[1], k.shape[1]) if allowed is None else allowed
    return blend(weights(q, k, allowed, softpick), v)


def test_softpick_is_within_eps_of_the_released_form():
    """Which adds eps to what is divided by the exponential of the largest score."""

    def softpick(x):
        e = np.exp(x - x.max()) - np.exp(-x.max())
        return np.maximum(e, 0) / (np.abs(e).sum() + 1e-8)

    with jax.enable_x64():
        q, k, v = qkv(B, T, N, H, dtype=np.float64)
        q = q * np.logspace(-8, 1, T)[:, None, None]
        want = blend(weights(np.asarray(q), np.asarray(k), causal(T, T), softpick), np.asarray(v))
        np.testing.assert_allclose(softpick_attention(q, k, v), want, rtol=0, atol=3e-8)


def test_softpick_of_one_small_score_by_hand():
    """exp(1e-4) - 1 beside the released eps, 1e-8; and a large score, where it is lost."""
    with jax.enable_x64():
        for score, want in ((1e-4, 0.9999), (1e-8, 0.5), (20.0, 1.0)):
            out = softpick_attention(*(jnp.full((1, 1, 1, 1), x) for x in (score, 1.0, 1.0)))
            np.testing.assert_allclose(out, want, rtol=0, atol=1e-7)


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
