"""FAST attention: its oracles; the order of its polynomial."""

import numpy as np

from attnjax import features
from attnjax.core.pairwise import attend as engine
from attnjax.ops.linear_recurrent import fast_attention_full
from tests.helpers import qkv, weights_of
from tests.ops.plain import weighted

B, T, N, H = 2, 9, 4, 8


def _fastmax(x, y):
    s = sum((x - x.mean()) / x.std() * (y - y.mean()) / y.std())
    return 1 + s + s * s / 2


def fast_attention_oracle(q, k, v):
    return weighted(q, k, v, _fastmax, causal=True)


def fast_attention_full_oracle(q, k, v):
    return weighted(q, k, v, _fastmax, causal=False)


def test_fast_attention_tends_to_the_softmax_of_standardized_tokens():
    q, k, v = qkv(B, T, N, 3)
    exact = engine.attend(features.standardize(q), features.standardize(k), v, scale=1.0)
    error = [np.abs(fast_attention_full(q, k, v, order=p) - exact).max() for p in (2, 4, 6, 8)]
    assert all(b < 0.7 * a for a, b in zip(error[:-1], error[1:], strict=True))
    assert error[-1] < 0.03


def test_fast_attention_of_order_one_has_negative_weights_and_of_order_two_none():
    q, k, _ = qkv(B, T, N, H)
    first = lambda q, k, v: fast_attention_full(q, k, v, order=1)
    assert (weights_of(first, q, k) < 0).any()
    assert (weights_of(fast_attention_full, q, k) > 0).all()
