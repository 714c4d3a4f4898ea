"""Adaptive entmax: its oracle finds tau by bisection; exact zeros, and alpha's range."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.softmax_core import alpha_of, entmax_attention, multi_head_attention
from tests.helpers import draw, near, qkv, weights_of
from tests.ops.plain import blend, weights

B, T, N, H = 1, 12, 4, 8


def entmax(s, alpha):
    """By bisection: tau is between the largest score less one and the largest score."""
    s = (alpha - 1) * s
    p = lambda tau: np.maximum(s - tau, 0) ** (1 / (alpha - 1))
    low, high = s.max() - 1, s.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if p(middle).sum() > 1 else (low, middle)
    return p((low + high) / 2)


def entmax_attention_oracle(q, k, v, logit, allowed=None):
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for n in range(q.shape[2]):  # a head alone, for each has an alpha
        alpha = min(max(1 + 1 / (1 + np.exp(-logit[n])), 1.01), 2)
        row = lambda s, alpha=alpha: entmax(s, alpha)
        out[:, :, n] = blend(weights(q, k, allowed, row), v)[:, :, n]
    return out


def test_weights_are_exactly_zero_the_more_the_larger_alpha():
    q, k, _ = qkv(B, T, N, H, scale=2.0)
    zeros = []
    for a in (-20.0, -1.0, 1.0, 20.0):
        w = weights_of(entmax_attention, q, k, jnp.full(N, a))
        near(w.sum(-1), np.ones((B, N, T)), 1e-4)
        zeros.append((w == 0).sum())
    assert zeros == sorted(zeros) and zeros[-1] > zeros[1] > 0


def test_alpha_near_one_is_nearly_softmax():
    q, k, v = qkv(B, T, N, H)
    low = entmax_attention(q, k, v, jnp.full(N, -100.0))
    near(low, multi_head_attention(q, k, v), 0.03)


def test_alpha_learns_where_it_is_not_clipped():
    q, k, v = qkv(B, T, N, H)
    logit = jnp.asarray([-100.0, -1.0, 1.0, 2.0])
    near(alpha_of(logit)[:3], [1.01, 1 + 1 / (1 + np.e), 1 + 1 / (1 + np.exp(-1))])
    loss = lambda a: (draw(*v.shape, seed=7) * entmax_attention(q, k, v, a)).sum()
    grad = jax.grad(loss)(logit)
    assert grad[0] == 0 and (jnp.abs(grad[1:]) > 1e-5).all()
