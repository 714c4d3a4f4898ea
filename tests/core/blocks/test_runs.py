"""Keys that stand for runs of tokens."""

import numpy as np

from attnjax import masks
from attnjax.core.blocks import runs


def test_a_run_is_seen_where_both_its_ends_are():
    seen = np.random.default_rng(0).random((9, 13)) < 0.7
    ends = [(0, 3), (2, 5), (4, 7), (6, 9), (8, 11)]
    for mask in (masks.array(seen), masks.causal, masks.causal & masks.array(seen)):
        of_runs = runs.mask_of_runs(mask, 9, 13, 4, 2)
        tokens = mask.dense(9, 13)
        got = of_runs.dense(9, 5)
        for c, (first, last) in enumerate(ends):
            assert np.array_equal(got[:, c], tokens[:, first] & tokens[:, last])
        tiles = of_runs.tiles(9, 5, 3, 2)
        parts = [got[r : r + 3, c : c + 2] for r in (0, 3, 6) for c in (0, 2, 4)]
        for kind, part in zip(tiles.ravel(), parts, strict=True):
            assert (kind == masks.EMPTY) <= (not part.any())
            assert (kind == masks.FULL) <= part.all()
    assert (runs.mask_of_runs(masks.causal, 9, 13, 4, 2).tiles(9, 5, 3, 2) == masks.EMPTY).any()
    assert not runs.mask_of_runs(masks.causal, 9, 3, 4, 2).dense(9, 1).any()  # no whole run
