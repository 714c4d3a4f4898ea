"""Rotary positions."""

import numpy as np
import pytest

from attnjax.core.positions import rotary
from tests.helpers import draw, near


def test_rotary_turns_pairs_and_leaves_products_to_the_difference():
    q, k = draw(1, 5, 1, 6), draw(1, 5, 1, 6, seed=1)
    at = np.array([0, 3, 4, 9, 100])
    got = np.asarray(rotary(q, at, 50.0))
    x = np.asarray(q, np.float64)[0, :, 0]
    turns = np.exp(1j * at[:, None] * 50.0 ** (-np.arange(3) / 3))
    z = (x[:, :3] + 1j * x[:, 3:]) * turns
    near(got[0, :, 0], np.concatenate([z.real, z.imag], axis=1))
    later = np.stack([at, at + 7])  # (B,T)
    both = np.asarray(rotary(np.repeat(q, 2, 0), later, 50.0))
    other = np.asarray(rotary(np.repeat(k, 2, 0), later, 50.0))
    products = np.einsum("btnh,bsnh->bts", both, other)
    np.testing.assert_allclose(products[0], products[1], atol=1e-4)
    assert not np.allclose(both[0], both[1], atol=0.1)
    with pytest.raises(ValueError, match="rotary: x has width H = 7, expected an even number"):
        rotary(draw(1, 2, 1, 7), np.arange(2))
