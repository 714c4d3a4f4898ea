"""Weighted grouped queries: the oracle, folding into projections, and one head of many."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.multihead_structure import fold_heads, weighted_gqa
from attnjax.ops.softmax_core import multi_head_attention
from tests.helpers import draws, near, qkv
from tests.ops.plain import blend, weights


def weighted_gqa_oracle(q, k, v, key_weights, value_weights, groups, allowed=None):
    N = q.shape[2]
    size = N // groups

    def shared(x, w):
        out = np.zeros((*x.shape[:2], groups, x.shape[-1]))
        for n, c in np.ndindex(N, x.shape[-1]):
            out[:, :, n // size, c] += w[n, c if w.shape[1] > 1 else 0] * x[:, :, n, c]
        return out

    k, v = shared(k, key_weights), shared(v, value_weights)
    return blend(weights(q, k, allowed), v)


def test_weights_fold_into_the_projection():
    """A number, columns and rows."""
    x, projection = draws((2, 5, 6), (6, 4, 3))
    heads = jnp.einsum("bsw,wnh->bsnh", x, projection)
    for w in draws((4, 1), (4, 3), (6, 4, 1)):
        folded = jnp.einsum("bsw,wkh->bskh", x, fold_heads(projection, w, 2))
        rows = jnp.einsum("bsw,wnh->bsnh", x, projection * w)
        near(folded, rows.reshape(2, 5, 2, 2, 3).sum(3))
        if w.ndim == 2:
            near(folded, fold_heads(heads, w, 2))


def test_one_hot_weights_choose_a_head():
    q, k, v = qkv(1, 4, 4, 3)
    one = jnp.array([0.0, 1.0, 1.0, 0.0])[:, None]
    near(
        weighted_gqa(q, k, v, one, one, groups=2),
        multi_head_attention(q, k[:, :, 1:3], v[:, :, 1:3]),
    )


def test_weights_that_do_not_fit():
    x, w = draws((2, 5, 4, 3), (4, 2))
    for groups, given in ((3, w[:, :1]), (2, w), (2, w[:1, :1])):
        with pytest.raises(ValueError, match=r"expected a divisor of N = 4 and \(N,1\) or \(N,3\)"):
            fold_heads(x, given, groups)
