"""Collapsed attention: its oracle, two projections in one, and symmetric scores."""

import jax.numpy as jnp
import numpy as np

from attnjax import attend
from attnjax.ops.multihead_structure import collapsed_attention, symmetric_weights
from tests.helpers import draws, near, run
from tests.ops.plain import softmax


def collapsed_attention_oracle(x, weights, scale=None):
    out = np.zeros((*x.shape[:2], weights.shape[1], x.shape[2]))
    scale = 1 / np.sqrt(x.shape[2]) if scale is None else scale
    for b, t, n in np.ndindex(*out.shape[:3]):
        out[b, t, n] = softmax(x[b, t] @ weights[:, n] @ x[b].T * scale) @ x[b]
    return out


def test_the_product_of_two_projections_is_softmax_attention():
    x, w_q, w_k = draws((2, 5, 6), (6, 3, 4), (6, 3, 4))
    q, k = (jnp.einsum("btw,wnh->btnh", x, w) for w in (w_q, w_k))
    both = jnp.einsum("anh,bnh->anb", w_q, w_k)
    got = run(collapsed_attention, x, both, scale=0.5)
    near(got, run(attend, q, k, jnp.stack([x] * 3, 2)))


def test_symmetric_scores():
    x, s = draws((1, 5, 6), (6, 1, 4))
    w = symmetric_weights(s)[:, 0]
    scores = x[0] @ w @ x[0].T
    near(scores, scores.T)
    assert (jnp.diagonal(scores) >= 0).all()
