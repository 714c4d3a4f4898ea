"""Local linear attention: the oracle solves the regression; affine values come back."""

import jax
import numpy as np

from attnjax import masks
from attnjax.ops.softmax_core import local_regression_attention
from tests.helpers import draw, near, qkv, weights_of
from tests.ops.plain import causal, kv, softmax, visible

B, T, N, H = 2, 9, 4, 8


def local_regression_attention_oracle(q, k, v, ridge=0.01, allowed=None):
    """The weights as the released readable form has them, from the system about the query."""
    (B, T, N, H), S = q.shape, k.shape[1]
    allowed = causal(T, S) if allowed is None else allowed
    out = np.zeros((B, T, N, v.shape[-1]))
    for b, i, n in np.ndindex(B, T, N):
        js, g = visible(allowed, b, n, i, S), kv(q, k, n)
        if not js:
            continue
        w = softmax(k[b, js, g] @ q[b, i, n] / np.sqrt(H))
        z = k[b, js, g] - q[b, i, n]
        mu = w @ z
        rho = np.linalg.solve((w[:, None] * z).T @ z + ridge * np.eye(H), mu)
        out[b, i, n] = (w * (1 - z @ rho) / (1 - mu @ rho)) @ v[b, js, g]
    return out


def test_affine_values_are_read_where_the_query_is():
    with jax.enable_x64():
        q, k, _ = qkv(B, T, N, 3)
        slope, constant = draw(3, 5, seed=1), draw(5, seed=2)
        out = local_regression_attention(q, k, k @ slope + constant, 1e-10)
        near(out[:, 5:], (q @ slope + constant)[:, 5:])  # with six keys and more, above H


def test_weights_sum_to_one_and_may_be_negative():
    q, k, _ = qkv(B, T, N, H)
    w = weights_of(local_regression_attention, q, k, mask=masks.causal)
    near(w.sum(-1), np.ones((B, N, T)), 1e-4)
    assert w.min() < -0.01 and (np.triu(w, 1) == 0).all()
    v = draw(B, T, N, H, seed=3)
    near(local_regression_attention(q, k, v)[:, 0], v[:, 0])
