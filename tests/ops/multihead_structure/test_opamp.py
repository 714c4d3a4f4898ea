"""OpAmp attention: its oracle, the sum of its rows, and an adapter that does not fit."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.multihead_structure import opamp_attention
from attnjax.ops.multihead_structure.opamp import OPS
from tests.helpers import near, weights_of
from tests.ops.plain import blend, heads, weights


def opamp_attention_oracle(q, k, v, adapters, difference, common, allowed=None):
    N = q.shape[2]
    gelu = np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2)

    def adapted(x, adapter):
        out = x.copy()
        for b, t in np.ndindex(x.shape[:2]):
            inner = gelu(np.einsum("nh,nhr->r", x[b, t], adapter.down))
            out[b, t] += np.einsum("r,rnh->nh", inner, adapter.up)
        return out

    k = heads(k, N)
    one, two, three, four = adapters
    plus = weights(adapted(q, one), adapted(k, two), allowed)
    minus = weights(adapted(q, three), adapted(k, four), allowed)
    return blend(difference * (plus - minus) + common * (plus + minus) / 2, v)


def test_rows_sum_to_the_common_gain_and_have_negative_weights():
    args = OPS[0].sample(seed=1, draw={"common": 0.7})
    q, k = args["q"], args["k"]
    w = weights_of(opamp_attention, q, k, args["adapters"], common=0.7)
    near(w.sum(-1), np.full(w.shape[:-1], 0.7), 1e-4)
    assert w.min() < -0.01


def test_adapters_of_other_heads():
    args = OPS[0].sample(seed=1)
    q = jnp.concatenate([args["q"]] * 2, axis=2)
    with pytest.raises(ValueError, match=r"down: \(4, 8, 3\); expected \(N,H,R\)"):
        opamp_attention(**args | {"q": q})
