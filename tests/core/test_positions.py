"""Rotary positions."""

import numpy as np
import pytest

from attnjax.core.positions import rotary
from tests.helpers import draw, near
from tests.laws.cases import oracle


def test_rotary_turns_pairs_and_leaves_products_to_the_difference():
    q, k = draw(1, 5, 1, 6), draw(1, 5, 1, 6, seed=1)
    at = np.array([0, 3, 4, 9, 100])
    got = np.asarray(rotary(q, at, 50.0))
    want = [oracle._rotated(np.float64(q[0, t, 0]), at[t], 50.0) for t in range(5)]
    near(got[0, :, 0], want)
    later = np.stack([at, at + 7])  # (B,T)
    both = np.asarray(rotary(np.repeat(q, 2, 0), later, 50.0))
    other = np.asarray(rotary(np.repeat(k, 2, 0), later, 50.0))
    products = np.einsum("btnh,bsnh->bts", both, other)
    near(products[0], products[1], atol=1e-4)
    assert not np.allclose(both[0], both[1], atol=0.1)
    with pytest.raises(ValueError, match="rotary: x has width H = 7, expected an even number"):
        rotary(draw(1, 2, 1, 7), np.arange(2))
