"""Axial attention: the oracle, the same on the transposed grid, both axes reach everything."""

import numpy as np
import pytest

from attnjax.ops.local_structured import axial_attention
from tests.helpers import near, qkv, weights_of
from tests.ops.plain import blend, weights

B, N, H = 2, 2, 8


def axial_attention_oracle(q, k, v, shape, axis):
    cells = list(np.ndindex(*shape))
    others = [[x for a, x in enumerate(cell) if a != axis % len(shape)] for cell in cells]
    return blend(weights(q, k, np.array([[a == b for b in others] for a in others])), v)


def test_an_axis_is_the_other_one_of_the_transposed_grid():
    q, k, v = qkv(B, 12, N, H)
    turn = lambda x: x.reshape(B, 3, 4, N, H).swapaxes(1, 2).reshape(B, 12, N, H)
    back = lambda x: x.reshape(B, 4, 3, N, H).swapaxes(1, 2).reshape(B, 12, N, H)
    other = axial_attention(turn(q), turn(k), turn(v), shape=(4, 3), axis=1)
    near(axial_attention(q, k, v, shape=(3, 4), axis=0), back(other))


def test_one_axis_after_the_other_reaches_every_cell():
    q, k, _ = qkv(1, 24, N, H)
    along = [weights_of(axial_attention, q, k, shape=(2, 3, 4), axis=a)[0] for a in range(3)]
    assert [(w[0, 0] > 0).sum() for w in along] == [2, 3, 4]
    assert (along[2] @ along[1] @ along[0] > 0).all()


def test_an_axis_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="axis: 2; expected one of 2"):
        axial_attention(*qkv(B, 12, N, H), shape=(3, 4), axis=2)
