"""Buckets of a hash, and keys drawn by density."""

import jax.numpy as jnp
import numpy as np

from attnjax.core.blocks.order import gray_codes, sample_keys
from tests.helpers import draw, near


def test_neighboring_buckets_differ_in_one_side():
    x, planes = draw(1, 4000, 1, 3), draw(3, 3, seed=1)
    codes = np.asarray(gray_codes(x, planes))[0, :, 0]
    sides = np.asarray(x[0, :, 0] @ planes > 0)
    of_code = {c: {tuple(s) for s in sides[codes == c]} for c in np.unique(codes)}
    assert sorted(of_code) == list(range(8))
    patterns = [np.array(of_code[c].pop()) for c in range(8)]
    assert not any(of_code.values())  # one pattern each
    assert all((a != b).sum() == 1 for a, b in zip(patterns, patterns[1:], strict=False))


def test_keys_are_drawn_in_proportion_to_their_density_in_each_segment():
    density = jnp.asarray([1.0, 0.0, 3.0, 4.0, 2.0, 6.0, 5.0])[None, :, None]
    draws = (jnp.arange(16) + 0.5) / 16
    at, log_weight = sample_keys(draws, density, 4)
    counts = np.bincount(np.asarray(at[0, :16, 0]), minlength=7)
    near(counts, [2, 0, 6, 8, 0, 0, 0])
    assert np.asarray(at[0, 16:, 0]).min() >= 4 and np.bincount(at[0, 16:, 0])[4:].sum() == 16
    weights = np.bincount(np.asarray(at[0, :, 0]), np.exp(log_weight[0, :, 0]), minlength=7)
    near(weights[:4], [1, 0, 1, 1])  # each key stands for itself, on average
    near(weights[4:], [1, 1, 1], 0.3)
    none = sample_keys(draws, 0 * density, 4)[1]
    near(none, np.log([4 / 16] * 16 + [3 / 16] * 16)[None, :, None])
