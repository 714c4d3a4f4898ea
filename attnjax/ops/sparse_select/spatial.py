"""Spatial sparse attention: tokens at places of a grid, in cells that hold some and of which few.

    o_i = g_i1 Attn(q_i, K_c, V_c) + g_i2 Attn(q_i, selected) + g_i3 Attn(q_i, the own window)
    K_c, V_c    a key and a value for each occupied cell of `compress`^A places
    selected    tokens of the `top` cells of `select`^A places of largest sum, over the group's
                heads and the small cells inside, of softmax_c(q_i . K_c / sqrt(H))
    window      tokens of the own cell of `window`^A places, which a shift moves

Paper: Wu et al., "Direct3D-S2: Gigascale 3D Generation Made Easy with Spatial Sparse Attention",
2025, arXiv:2505.17412, section 3.2; code: DreamTechAI/Direct3D-S2.
Limits: of one branch alone: all cells, a window of all, and cells of one token are full attention.
Differs: all examples have their tokens at the same places, known beforehand, and cells are filled
up to the fullest one. Means stand for cells unless `compressed` gives what a network makes of
them (keys with an embedding of the place inside the cell, norm, SiLU, mean, convolutions of cells).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.blocks import block_maps, select
from attnjax.core.blocks.order import BlockOrder
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import einsum, finite, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, Sizes, adjusted, by_sizes, uniform
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, Int, Out, Q, TokenK, TokenV

Places = Sequence[Sequence[int]]
Summary = Float[Array, "B n K H"]


class Cells(NamedTuple):
    """Lengths of cells along each axis, `compress` divides `select`; how many are selected."""

    compress: int = 4
    select: int = 8
    window: int = 8
    top: int = 16
    shift: int = 0


class Grid(NamedTuple):
    """Tokens by cell, filled up to the fullest; the cell of each token; where the cells lie."""

    order: BlockOrder
    cell: Int[np.ndarray, " T"]
    at: Int[np.ndarray, "n A"]


def grid_of(places: Places, size: int, shift: int = 0) -> Grid:
    """The occupied cells of `size` places along each axis, in the order of their coordinates."""
    at, cell = np.unique((np.asarray(places) + shift) // size, axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    fullest = np.bincount(cell).max()
    tokens = np.argsort(cell, kind="stable")
    inside = np.arange(len(cell)) - np.searchsorted(cell[tokens], cell[tokens])
    order = np.full(len(at) * fullest, len(cell), np.int32)
    order[cell[tokens] * fullest + inside] = tokens
    full = len(order) == len(cell)
    return Grid(BlockOrder(order, int(fullest), len(cell), full), cell, at)


@of_whole_text
@on_any_mesh
def spatial_sparse_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    gates: Float[Array, "B T 3"],
    *,
    places: Places,
    cells: Cells,
    compressed: tuple[Summary, Summary] | None = None,
    impl: Impl = None,
) -> Out:
    """Attention in both directions of tokens at integer `places` (T,A), whatever their order.

    compressed   K_c, V_c of the occupied cells of `grid_of(places, cells.compress)`; means if None

    Selecting, the same for the heads that share keys, has no gradient.  Fewer than `top` cells are
    all taken.
    """
    _check(q, places, cells)
    small = grid_of(places, cells.compress)
    summary = compressed or (small.order.means(k), small.order.means(v))
    large = grid_of(places, cells.select)
    chosen = _selected(q, summary[0], small, large, cells)
    own = grid_of(places, cells.window, cells.shift)
    block = jnp.broadcast_to(own.cell[None, :, None, None], (*q.shape[:2], 1, 1))
    window = Selection(block, jnp.ones(block.shape, bool), 1, own.order.size)

    def within(grid: Grid, blocks: Selection) -> Out:
        order = grid.order
        return attend(
            wide(q),
            wide(order.take(k)),
            wide(order.take(v)),
            blocks=blocks,
            mask=order.seen(masks.everything, q.shape[1]),
            k_positions=order.order,
            impl=impl,
        )

    parts = (
        attend(wide(q), *map(wide, summary), impl=impl),
        within(large, chosen),
        within(own, window),
    )
    mixed = einsum("BTc,cBTND->BTND", finite(gates), jnp.stack(parts))
    return mixed.astype(q.dtype)


def _selected(q: Q, keys: Summary, small: Grid, large: Grid, cells: Cells) -> Selection:
    """The cells that each token of each group of heads selects."""
    ratio, K = cells.select // cells.compress, keys.shape[2]
    inside = (small.at[:, None] // ratio == large.at[None]).all(-1)

    def of_rows(w: Array, first: Array) -> Selection:
        group = select.over_group(jnp.swapaxes(w, 1, 2), K)
        score = einsum("BTKn,nm->BTKm", group, jnp.asarray(inside, group.dtype))
        return select.top_k(score, cells.top, block_k=large.order.size)

    return block_maps.reduce_rows(wide(q), wide(keys), of_rows)


def _check(q: Q, places: Places, cells: Cells) -> None:
    if len(places) != q.shape[1]:
        raise ValueError(f"places: {len(places)} of them; expected T = {q.shape[1]}")
    if min(cells[:4]) < 1 or cells.select % cells.compress:
        raise ValueError(f"cells: {cells}; expected compress to divide select, none below 1")


def _scattered(z: Sizes) -> tuple[tuple[int, int, int], ...]:
    """T places of a solid, in a scattered order."""
    T = z["T"]
    return tuple((u % 3, u // 3 % 2, u // 6) for u in ((t * 7 + 3) % T for t in range(T)))


def _alone(says: str, branch: int, cells: Cells) -> Limit:
    only = adjusted(lambda gates: np.broadcast_to(np.arange(3) == branch, gates.shape) * 1.0)
    return Limit(says, {"gates": only, "cells": cells}, multi_head_attention)


OPS = (
    Op(
        spatial_sparse_attention,
        papers=(217,),
        reads="all",
        draw={
            "gates": uniform(0.1, 1.0),
            "places": by_sizes(_scattered),
            "cells": Cells(1, 2, 2, 1, 1),
        },
        exempt={"grouped": "query heads that share keys select together"},
        limits=(
            _alone("all cells alone are attention", 1, Cells(1, 2, 2, 9)),
            _alone("a window of all alone, too", 2, Cells(1, 2, 9, 1)),
            _alone("cells of one token alone, too", 0, Cells(1, 2, 2, 1)),
        ),
    ),
)
