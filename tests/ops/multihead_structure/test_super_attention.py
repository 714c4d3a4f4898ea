"""Super attention: oracles, and what projections of one would do."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.multihead_structure import slices, super_attention
from tests.helpers import draw, draws, near
from tests.ops.plain import blend, causal, weights


def super_attention_oracle(q, x, alignment):
    return _super(q, x, alignment, None)


def super_attention_causal_oracle(q, x, alignment):
    return _super(q, x, alignment, causal(*q.shape[1:2], q.shape[1]))


def _super(q, x, alignment, allowed):
    B, T, N, H = q.shape
    k, v = np.zeros((B, T, N, H)), np.zeros((B, T, N, H))
    for b, t, n, h in np.ndindex(B, T, N, H):
        k[b, t, n, h] = x[b, t, n * H + h]
        for s in range(T):
            if allowed is None or s <= t:
                v[b, t, n, h] += alignment[t, s] * x[b, s, n * H + h]
    return blend(weights(q, k, allowed), v)


def test_slices_are_projections_by_the_identity():
    x = draw(2, 3, 8)
    near(slices(x, 4), jnp.einsum("btw,wnh->btnh", x, jnp.eye(8).reshape(8, 4, 2)))
    with pytest.raises(ValueError, match="W = 8, expected a multiple of N = 3"):
        slices(x, 3)


def test_an_alignment_of_too_few_tokens():
    q, x, alignment = draws((1, 5, 2, 4), (1, 5, 8), (4, 4))
    with pytest.raises(
        ValueError, match=r"alignment: \(4, 4\); expected \(X,X\), X at least T = 5"
    ):
        super_attention(q, x, alignment)
