"""Which masks are known to be causal."""

import jax
import numpy as np
import pytest

from attnjax import masks
from attnjax.core.masks.future import hides_future

T = 11
TWO = np.repeat([0, 1], (4, 7))
CAUSAL = {
    "causal": masks.causal,
    "a window": masks.window(3),
    "no more than itself": masks.window(0),
    "causal documents": masks.causal & masks.document(TWO),
    "causal and padded": masks.causal & masks.lengths(k=[T, 5]),
    "an array": masks.array(np.tri(T, dtype=bool)),
    "an array of each head": masks.array(np.tri(T, dtype=bool)[None, None].repeat(3, 1)),
    "to the end": masks.causal_to_end,
    "a causal line": masks.neighborhood((T,), 3, causal=True),
}
BOTH_WAYS = {
    "everything": masks.everything,
    "padding": masks.lengths(k=[T, 5]),
    "padding but for one key": masks.lengths(k=[1, 1]),
    "documents": masks.document(TWO),
    "a prefix": masks.causal | masks.prefix(2),
    "ahead": masks.window(0, None),
    "one head looks ahead": masks.array(np.stack([np.tri(T), np.ones((T, T))])[None] > 0),
    "one pair ahead": masks.array(np.tri(T, dtype=bool) | (np.arange(T * T) == 1).reshape(T, T)),
    "the last pair ahead": masks.array(np.tri(T) + np.eye(T, k=T - 1) > 0),
    "a line": masks.neighborhood((T,), 3),
    "a function of places": masks.fn(lambda i, j: j <= i),
}


@pytest.mark.parametrize("mask", CAUSAL.values(), ids=CAUSAL)
def test_causal_masks_hide_the_future(mask):
    assert hides_future(mask, T, T)


@pytest.mark.parametrize("mask", BOTH_WAYS.values(), ids=BOTH_WAYS)
def test_others_do_not_or_are_not_known_to(mask):
    assert not hides_future(mask, T, T)


@pytest.mark.parametrize(("queries", "keys"), [(5, 9), (9, 5), (1, 1), (2, 1), (2, 2)])
def test_every_pair_ahead_counts(queries, keys):
    ok = np.tri(queries, keys, dtype=bool)
    assert hides_future(masks.array(ok), queries, keys) == (keys > 1)
    for pair in np.argwhere(~ok):
        more = ok.copy()
        more[tuple(pair)] = True
        assert not hides_future(masks.array(more), queries, keys)


def test_a_traced_mask_is_not_known():
    def check(ok):
        assert not hides_future(masks.array(ok), T, T)
        return ok

    jax.eval_shape(check, np.tri(T, dtype=bool))


def test_a_million_tokens_cost_no_square():
    ids = np.arange(1 << 20) // 1000
    assert hides_future(masks.causal & masks.document(ids), 1 << 20, 1 << 20)
    assert not hides_future(masks.document(ids), 1 << 20, 1 << 20)
