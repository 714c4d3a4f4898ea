"""Passes over keys: what the counter says of each cascade, and that all of them are attention."""

import jax
import numpy as np
import pytest

from attnjax.ops.softmax_core import multi_head_attention
from attnjax.probes.passes import (
    DEFERRED,
    ONE,
    THREE,
    TWO,
    Einsum,
    deferred_division,
    left_behind,
    made_in,
    one_pass,
    operations,
    passes,
    three_passes,
    two_passes,
)
from tests.helpers import near, qkv


@pytest.mark.parametrize(
    ("cascade", "rank", "count", "left"),
    [
        (THREE, "m", 3, ("S", "E")),
        (DEFERRED, "m", 2, ("S",)),
        (TWO, "ci", 2, ("E",)),
        (ONE, "ci", 1, ()),
    ],
)
def test_passes_and_what_they_leave(cascade, rank, count, left):
    assert passes(cascade, rank) == count
    assert left_behind(cascade, rank) == left
    assert passes(cascade, "p") == 1 and not left_behind(cascade, "p")  # queries are independent


def test_a_sum_has_to_be_complete_before_it_is_read():
    mean = Einsum("U", "", {"X": "m"}, "add"), Einsum("Y", "m", {"X": "m", "U": ""}, "add")
    assert made_in(mean, "m") == {"U": 1.5, "Y": 2}
    prefix = Einsum("U", "m", {"X": "m", "U": "m"}, "add"), Einsum("Y", "m", {"U": "m"}, "add")
    assert passes(prefix, "m") == 1
    assert passes((Einsum("Z", "n", {"X": "n"}, "add"),), "m") == 0


def test_deferring_divides_outputs_and_not_weights():
    sizes = {"p": 3, "m": 1000, "e": 8, "f": 16}
    count = [operations(cascade, sizes) for cascade in (THREE, DEFERRED)]
    assert [c["divide"] for c in count] == [3 * 1000, 3 * 16]
    assert [c["exp"] for c in count] == [3 * 1000, 3 * 1000]
    chunks = {"p": 3, "c": 10, "i": 100, "e": 8, "f": 16}
    for cascade, divisions in ((TWO, 3 * 1000), (ONE, 3 * 16)):
        count = operations(cascade, chunks)
        assert count["divide"] == divisions and count["exp"] == 3 * 1000 + 3 * 10


@pytest.mark.parametrize("chunk", [1, 3, 4, 11, 50])
def test_all_forms_are_softmax_attention(chunk):
    q, k, v = qkv(2, 3, 4, 8, S=11, K=2, D=5, scale=3.0)
    forms = lambda q, k, v: (
        two_passes(q, k, v, chunk=chunk),
        one_pass(q, k, v, chunk=chunk),
        three_passes(q, k, v),
        deferred_division(q, k, v),
    )
    want = np.asarray(multi_head_attention(q, k, v))
    for got in jax.jit(forms)(q, k, v):
        near(got, want)
