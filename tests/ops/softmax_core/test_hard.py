"""Hard attention: the oracles, ties across the borders of tiles, and languages that they decide."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import Blockwise, masks
from attnjax.ops.softmax_core import (
    average_hard_attention,
    leftmost_hard_attention,
    rightmost_hard_attention,
)
from tests.helpers import draw, exact, near, qkv
from tests.ops.plain import blend, causal, weights

B, T, N, H = 2, 9, 4, 8


def average(s):
    best = s == s.max()
    return best / best.sum()


def leftmost(s):
    return np.arange(len(s)) == np.argmax(s)


def rightmost(s):
    return np.arange(len(s)) == len(s) - 1 - np.argmax(s[::-1])


def average_hard_attention_oracle(q, k, v, allowed=None):
    return blend(weights(q, k, allowed, average), v)


def leftmost_hard_attention_oracle(q, k, v, allowed=None):
    return blend(weights(q, k, allowed, leftmost), v)


def rightmost_hard_attention_oracle(q, k, v, allowed=None):
    return blend(weights(q, k, allowed, rightmost), v)


@pytest.mark.parametrize("impl", ["dense", Blockwise(4, 3)], ids=["dense", "tiles"])
def test_ties(impl):
    """Keys of -1, 0 and 1: most maxima are shared, also by keys of different tiles."""
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.integers(-1, 2, (B, T, N, 2)), float) for _ in range(2))
    v = draw(B, T, N, H)
    for op, rule in (
        (average_hard_attention, average),
        (leftmost_hard_attention, leftmost),
        (rightmost_hard_attention, rightmost),
    ):
        want = blend(weights(*exact((q, k)), causal(T, T), rule), exact(v))
        near(op(q, k, v, mask=masks.causal, impl=impl), want)


@pytest.mark.parametrize(
    "op", [average_hard_attention, leftmost_hard_attention, rightmost_hard_attention]
)
def test_later_tokens_change_nothing_under_a_causal_mask(op):
    (q, k, v), (q2, k2, v2), now = qkv(B, T, N, H), qkv(B, T, N, H, seed=1), 5
    late = [jnp.concatenate([x[:, :now], y[:, now:]], 1) for x, y in ((q, q2), (k, k2), (v, v2))]
    whole, moved = (op(*x, mask=masks.causal) for x in ((q, k, v), late))
    near(moved[:, :now], whole[:, :now])
    assert jnp.abs(moved - whole)[:, now:].max() > 0.1


def test_averages_decide_majority_and_a_single_key_first_order_properties():
    """All words of six letters: more ones than zeros; no zero after a one."""
    words = np.array(list(itertools.product([0, 1], repeat=6)), float)
    letters = jnp.asarray(words)[:, :, None, None]
    ones = jnp.ones_like(letters)
    mean = jax.jit(average_hard_attention)(0 * letters, ones, letters)[:, 0, 0, 0]
    np.testing.assert_array_equal(mean > 0.5, words.sum(1) > 3)
    # Each place reads the last 1 before it or at it, 0 if there is none.
    seen = rightmost_hard_attention(ones, letters, letters, mask=masks.causal)[..., 0, 0]
    np.testing.assert_array_equal((seen > words).any(1), (np.diff(words) < 0).any(1))
