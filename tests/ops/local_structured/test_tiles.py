"""Neighborhoods in tiles: the oracle, the order, what is judged and counted, more keys."""

import math

import numpy as np
import pytest

from attnjax.core import masks
from attnjax.ops.local_structured import (
    in_tiles,
    row_visits,
    tiled_neighborhood_attention,
    tiles_of,
    visits,
)
from tests.helpers import draws, exact, near, qkv, run
from tests.ops.plain import blend, weights

B, N, K, H = 2, 4, 2, 8


def _window(x, extent, window, stride, dilation, causal):
    """The positions of one axis that position x sees, as the paper's leaders say."""
    members = list(range(x % dilation, extent, dilation))
    place = members.index(x)
    run_start = place - place % stride
    if causal:
        leader = min(run_start + stride - 1, len(members) - 1)
        return members[max(leader - window + 1, 0) : place + 1]
    leader = min(run_start + stride // 2, len(members) - 1)
    start = leader - window // 2
    start = min(max(start, 0), len(members) - window)
    return members[start : start + window]


def tiled_neighborhood_attention_oracle(
    q, k, v, k_extra=None, v_extra=None, *, near, tile=None, key_tile=None
):
    shape = tuple(axis.extent for axis in near.axes)
    cells = list(np.ndindex(*shape))
    seen = np.zeros((len(cells), len(cells)), bool)
    for i, c in enumerate(cells):
        mine = [set(_window(x, *axis)) for x, axis in zip(c, near.axes, strict=True)]
        for j, d in enumerate(cells):
            seen[i, j] = all(y in each for y, each in zip(d, mine, strict=True))
    if k_extra is not None:
        k, v = (np.concatenate(pair, 1) for pair in ((k, k_extra), (v, v_extra)))
        seen = np.concatenate([seen, np.ones((len(cells), k_extra.shape[1]), bool)], 1)
    return blend(weights(q, k, seen), v)


GRIDS = {
    "a line, dilated and strided": (((13,), 3, 3, 4), 2, None),
    "tiles over the edge": (((5, 7), (3, 5), (1, 2)), (2, 3), None),
    "dilated, classes of unlike size": (((6, 7), (3, 2), 1, (2, 3)), 2, (1, 2)),
    "causal in time": (((7, 5), 3, (2, 1), (2, 1), (True, False)), (2, 2), (4, 1)),
    "a cuboid": (((2, 3, 4), (1, 3, 2), (1, 2, 1), (2, 1, 2)), 2, None),
    "the tile by default": (((9, 5), 3), None, None),
}


@pytest.mark.parametrize(("given", "tile", "key_tile"), GRIDS.values(), ids=GRIDS)
def test_grids(given, tile, key_tile):
    around = masks.neighborhood(*given)
    q, k, v = qkv(B, math.prod(given[0]), N, H, K=K)
    args = [q, k, v] + (draws((B, 3, K, H), (B, 3, K, H), seed=4) if key_tile else [])
    want = tiled_neighborhood_attention_oracle(*exact(args), near=around)
    cut = {"near": around, "tile": tile, "key_tile": key_tile}
    near(run(tiled_neighborhood_attention, *args, **cut), want)


@pytest.mark.parametrize(("given", "tile", "key_tile"), GRIDS.values(), ids=GRIDS)
def test_tiles_are_judged_as_they_are(given, tile, key_tile):
    around = masks.neighborhood(*given)
    mask = in_tiles(around, tile, key_tile)
    T, S = (extent.size for extent in mask.extents)
    order = [tiles_of(around, t).cells.ravel() for t in (mask.q_tile, mask.k_tile)]
    size = math.prod(given[0])
    whole = np.zeros((size + 1, size + 1), bool)  # the last is nobody
    whole[:size, :size] = around.dense(size, size)
    dense = mask.dense(T, S)
    assert (dense == whole[np.ix_(*order)]).all()

    own = math.prod(mask.q_tile), math.prod(mask.k_tile)
    for block_q, block_k in (own, (2 * own[0], 3 * own[1]), (1, 2), (5, 7)):
        kinds = mask.tiles(T, S, block_q, block_k)
        for i, j in np.ndindex(*kinds.shape):
            part = dense[i * block_q : (i + 1) * block_q, j * block_k : (j + 1) * block_k]
            told = int(part.any()) + int(part.all())
            if (block_q, block_k) == own:
                assert kinds[i, j] == told
            assert kinds[i, j] == 1 or kinds[i, j] == told


def test_the_count_is_that_of_the_pairs():
    around = masks.neighborhood((16, 16), 5)
    seen = around.dense(256, 256)
    in_boxes, in_rows = visits(around, 4), row_visits(around, 16, 16)
    assert in_boxes.needed == in_rows.needed == seen.sum() == 256 * 25
    strips = seen.reshape(16, 16, 16, 16).any((1, 3)).sum()
    assert in_rows.tiles == strips and in_rows.pairs == 256 * strips
    order = tiles_of(around, 4).cells.ravel()
    squares = seen[np.ix_(order, order)].reshape(16, 16, 16, 16).any((1, 3)).sum()
    assert in_boxes.tiles == squares and in_boxes.all == 256 and squares < strips * 1.3


def test_what_is_perfectly_sparse_in_blocks():
    """A run of one window, and windows that end where tiles do."""
    blocks = visits(masks.neighborhood((16, 16), 4, stride=4), 4)
    assert blocks.tiles == blocks.full == 16 and blocks.pairs == blocks.needed
    wide = visits(masks.neighborhood((24, 24), 12, stride=4), 4, 2)
    assert wide.tiles == wide.full and wide.pairs == wide.needed
    assert visits(masks.neighborhood((128, 128), 57), 4).pairs <= 1.3 * 128**2 * 57**2


def test_places_that_are_not_those_of_the_tiles_are_refused():
    mask = in_tiles(masks.neighborhood((4, 5), 3), 2)
    with pytest.raises(ValueError, match="T is 20, expected 24 places in tiles"):
        mask.dense(20, 24)
