"""Multi-head attention and sinusoidal positions: the oracle, jax.nn's, symmetries."""

import jax
import numpy as np
import pytest

from attnjax import masks
from attnjax.ops.softmax_core import multi_head_attention, sinusoidal_positions
from tests.helpers import near, qkv
from tests.ops.plain import blend, weights

B, T, N, H = 2, 9, 4, 8


def multi_head_attention_oracle(q, k, v, allowed=None):
    return blend(weights(q, k, allowed), v)


def test_multi_head_attention_is_that_of_jax_nn():
    q, k, v = qkv(B, T, N, H)
    near(multi_head_attention(q, k, v), jax.nn.dot_product_attention(q, k, v))
    causal = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    near(multi_head_attention(q, k, v, mask=masks.causal), causal)


def test_multi_head_attention_without_positions_permutes_with_its_tokens():
    q, k, v = qkv(B, T, N, H)
    order = np.random.default_rng(0).permutation(T)
    permuted = multi_head_attention(q[:, order], k[:, order], v[:, order])
    near(permuted, multi_head_attention(q, k, v)[:, order])


def test_a_shift_of_positions_is_a_rotation_of_their_code():
    width, shift = 10, 7
    code = np.asarray(sinusoidal_positions(40, width))
    rates = 10000.0 ** (-np.arange(0, width, 2) / width)
    for pair, rate in enumerate(rates):
        cos, sin = np.cos(shift * rate), np.sin(shift * rate)
        turn = np.array([[cos, sin], [-sin, cos]])  # acts on (sine, cosine)
        pairs = code[:, 2 * pair : 2 * pair + 2]
        near(pairs[shift:], pairs[:-shift] @ turn.T)
    near(code[3, 4:6], [np.sin(3 * rates[2]), np.cos(3 * rates[2])])


def test_sinusoidal_positions_refuse_an_odd_width():
    with pytest.raises(ValueError, match="width: 5; expected an even number"):
        sinusoidal_positions(4, 5)
