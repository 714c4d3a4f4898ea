"""A cache of keys alone: oracles; equality with attention of the values themselves."""

import numpy as np
import pytest

from attnjax import attend, masks
from attnjax.core.positions import rotary
from attnjax.ops.kv_decode import slim_attention, slim_decoding_attention, value_map
from tests.helpers import draw, draws, near
from tests.ops.plain import blend, causal, weights


def slim_attention_oracle(q, k, raw, values, allowed=None):
    allowed = causal(q.shape[1], k.shape[1]) if allowed is None else allowed
    (B, S), (_, N, D) = raw.shape[:2], values.shape
    v = np.zeros((B, S, N, D))
    for b, j, n in np.ndindex(B, S, N):
        v[b, j, n] = raw[b, j].reshape(-1) @ values[:, n]
    return blend(weights(q, k, allowed), v)


slim_decoding_attention_oracle = slim_attention_oracle


@pytest.mark.parametrize("op", [slim_attention, slim_decoding_attention])
def test_it_is_attention_of_the_values(op):
    x, (w_q, w_k, w_v) = draw(2, 9, 12), draws(*[(12, 3, 4)] * 3, seed=4, scale=0.3)
    w_k = w_k + np.eye(12).reshape(12, 3, 4)
    q, k, v = (np.einsum("btw,wnh->btnh", x, w) for w in (w_q, w_k, w_v))
    turned_q, turned_k = (rotary(y, np.arange(9)) for y in (q, k))
    got = op(turned_q, turned_k, k, value_map(w_k, w_v))
    near(got, attend(turned_q, turned_k, v, mask=masks.causal), 1e-4)


def test_keys_that_are_shared_have_no_map():
    with pytest.raises(ValueError, match="value_map: w_k has N H = 8, expected W = 12"):
        value_map(draw(12, 2, 4), draw(12, 2, 4))
