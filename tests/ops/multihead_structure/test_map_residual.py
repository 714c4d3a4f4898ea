"""Residual maps: the oracle, and what rows sum to."""

import numpy as np

from attnjax.ops.multihead_structure import map_residual_attention
from tests.helpers import draws, near, weights_of
from tests.ops.plain import blend, weights


def map_residual_attention_oracle(q, k, v, q_before, k_before, gate, allowed=None):
    now, before = weights(q, k, allowed), weights(q_before, k_before, allowed)
    return blend(now + gate[:, :, None, None] * before, v)


def test_rows_sum_to_one_and_the_gate():
    q, k, q_before, k_before, gate = draws(*[(2, 5, 3, 4)] * 4, (2, 3))
    w = weights_of(lambda q, k, v: map_residual_attention(q, k, v, q_before, k_before, gate), q, k)
    near(w.sum(-1), np.repeat(1 + np.asarray(gate)[:, :, None], 5, axis=2))
