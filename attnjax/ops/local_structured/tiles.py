"""Neighborhood attention over tiles that are boxes of the grid, and a count of the tiles visited.

    order     the tiles of `boxes(shape, tile, dilation=dilation)` one behind the other, row-major;
              places over the edge of the grid are nobody's
    A_ij      = softmax_j(q_i . k_j / sqrt(H)) over the window of i and, of every i, the extra keys
    a tile of queries visits those tiles of keys that hold a key of one of its windows

In row-major order a tile is a strip one cell high: the windows of its queries hold all columns of
as many rows as the window has. As a box it meets few others. `in_tiles` gives the mask of that
order, for any mods and normalizer; a tile of queries may be of another shape than one of keys.
`visits` and `row_visits` count without attending, as the simulator of the paper does for tiles of
keys that lie at fixed places.

Measured by turns on two shared cores, a grid of 64 x 64 cells, window 13, eight heads of width 64,
forward, least seconds of CPU of five: tiles of 8 x 8 0.10; row-major 0.13 in blocks of 64 and 0.36
in those that `neighborhood_attention` takes by itself; a dense mask 1.24; jax.nn with it 0.96.

Paper: Hassani et al., "Generalized Neighborhood Attention", 2025, arXiv:2504.16922, sections 3.2
and 3.3; Hassani, Hwu and Shi, "Faster Neighborhood Attention", 2024, arXiv:2403.04690.
Limits: tiles of one cell, and every tile, are neighborhood attention; stride = window = tile visits
the pairs needed and no more, without a mask.
    At stride 1 an axis with window w and tiles of t cells visits up to w + 2t - 2 keys of each
    query, t >= 2: for at most 1.3 times the pairs needed in two dimensions w is about 14 t (w = 57
    with t = 4: 1.22; w = 13 with t = 8: 2.86, row-major 4.9 or more). With strides, queries of a
    run have one window: stride = t, w an odd multiple of t, has (w + t) / w on an axis where the
    ends of windows do not meet those of tiles, and 1 where they do.
Differs: padding is masked, not cut into the shape; of NATTEN's simulator, tiles of keys that begin
where the first window does are not here, which skip more but are no order of the keys.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jax.tree_util import register_dataclass

from attnjax.core import masks
from attnjax.core.masks.base import Extent, every_one, numpy_of, static_field, verdict
from attnjax.core.masks.functions import MaskFunction, MaskOperand, read_at
from attnjax.core.masks.grid import Axes, Axis
from attnjax.core.pairwise.attend import Impl, attend, attend_state, join_states
from attnjax.core.pairwise.blockwise import Blockwise
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, Sizes, by_sizes, grid, normal
from attnjax.ops.local_structured.grids import Boxes, PerAxis, boxes, per_axis
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV

# ------------------------------------------------------------------------------------- the order


def tiles_of(near: masks.Neighborhood, tile: PerAxis | None = None) -> Boxes:
    """The tiles of a neighborhood's grid: `take` gives them, `restored` is the inverse.

    A tile takes every so manieth cell of a dilated axis, those of one class. None: about 64 cells,
    as many on each axis.
    """
    shape = tuple(axis.extent for axis in near.axes)
    tile = round(64 ** (1 / len(shape))) if tile is None else tile
    sizes = per_axis("tile", tile, len(shape))
    sizes = [min(n, -(-a.extent // a.dilation)) for n, a in zip(sizes, near.axes, strict=True)]
    return boxes(shape, sizes, dilation=[axis.dilation for axis in near.axes])


class _Line(NamedTuple):
    """One axis in the order of its tiles, arrays (tiles of the axis, cells of one).

    Members of class r count from r * extent on, so that one comparison is for class and place.
    """

    first: np.ndarray  # member that a query sees first
    last: np.ndarray
    member: np.ndarray
    there: np.ndarray  # whether there is a cell


@functools.lru_cache
def _line(axis: Axis, size: int) -> _Line:
    at = boxes((axis.extent,), size, dilation=axis.dilation).cells
    cell = np.minimum(at, axis.extent - 1)
    r, c = cell % axis.dilation, cell // axis.dilation
    members = (axis.extent - 1 - r) // axis.dilation + 1
    first, last = axis.span(c, members, np)
    base = r * axis.extent
    return _Line(base + first, base + last, base + c, at < axis.extent)


class _Tokens(NamedTuple):
    """The grid in the order of its tiles, (axes, tokens); nobody's place is seen by none."""

    first: np.ndarray
    last: np.ndarray
    member: np.ndarray


@functools.lru_cache
def _tokens(axes: Axes, tile: tuple[int, ...]) -> _Tokens:
    lines = [_line(axis, n) for axis, n in zip(axes, tile, strict=True)]
    r, counts = len(axes), [len(line.there) for line in lines]
    at = np.indices((*counts, *tile)).reshape(2 * r, math.prod(counts) * math.prod(tile))
    each = lambda name: np.stack([getattr(x, name)[at[a], at[r + a]] for a, x in enumerate(lines)])
    there = each("there").all(0)
    last, member = (np.where(there, each(name), -1) for name in ("last", "member"))
    return _Tokens(*(x.astype(np.int32) for x in (each("first"), last, member)))


class _Ends(NamedTuple):
    """Of an interval of tiles on one axis."""

    first: tuple[Any, Any]  # of the first query, and of the last
    last: tuple[Any, Any]
    member: tuple[Any, Any]
    there: Any  # whether some place may be a cell's
    whole: Any  # whether all are


def _ends(line: _Line, low: Any, high: Any, xp: Any) -> _Ends:
    # Each of these never falls along the axis, once a place that is nobody's counts as the one
    # before it: so the ends of an interval bound all that is between.
    there = line.there
    known = lambda x: np.where(there, x, 0).reshape(there.size)
    rising = lambda x: np.maximum.accumulate(known(x)).reshape(there.shape)
    both = lambda x: (xp.take(rising(x)[:, 0], low), xp.take(rising(x)[:, -1], high))
    missing = np.concatenate([[0], np.cumsum(~there.all(1))])
    whole = xp.take(missing, high + 1) == xp.take(missing, low)
    some = (low != high) | xp.take(there[:, 0], low)
    return _Ends(both(line.first), both(line.last), both(line.member), some, whole)


@register_dataclass
@dataclass(frozen=True, repr=False)
class TiledNeighborhood(masks.Mask):
    """A neighborhood, of positions in the order of tiles; `in_tiles` makes it."""

    axes: Axes = static_field()
    q_tile: tuple[int, ...] = static_field()
    k_tile: tuple[int, ...] = static_field()

    def resolve(self, T, S):
        for name, tile, size in (("T", self.q_tile, T), ("S", self.k_tile, S)):
            if (expected := _tokens(self.axes, tile).first.shape[1]) != size:
                raise ValueError(f"{self}: {name} is {size}, expected {expected} places in tiles")
        return self

    @property
    def extents(self):
        sizes = (_tokens(self.axes, tile).first.shape[1] for tile in (self.q_tile, self.k_tile))
        return tuple(Extent(f"{self} of {n} places", n, rides=False) for n in sizes)

    def allowed(self, q_pos, k_pos):
        xp = numpy_of(q_pos, k_pos)
        q, k = _tokens(self.axes, self.q_tile), _tokens(self.axes, self.k_tile)
        # Tables, as the arithmetic of the grid would be done for each pair and head again.
        at = lambda table, pos: xp.take(xp.asarray(table), pos, axis=0, mode="clip")
        terms = (
            (at(first, q_pos), at(last, q_pos), at(member, k_pos))
            for first, last, member in zip(q.first, q.last, k.member, strict=True)
        )
        return every_one((first <= m) & (m <= last) for first, last, m in terms)

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        xp = numpy_of(q_lo, q_hi, k_lo, k_hi)
        queries = self._intervals(self.q_tile, q_lo, q_hi, xp)
        keys = self._intervals(self.k_tile, k_lo, k_hi, xp)
        some, every = [], []
        for q, k in zip(queries, keys, strict=True):
            meet = (q.first[0] <= k.member[1]) & (k.member[0] <= q.last[1])
            some.append(meet & q.there & k.there)
            inside = (q.first[1] <= k.member[0]) & (k.member[1] <= q.last[0])
            every.append(inside & q.whole & k.whole)
        return verdict(every_one(some), every_one(some + every))

    def _intervals(self, tile: tuple[int, ...], lo: Any, hi: Any, xp: Any) -> list[_Ends]:
        """The smallest box of tiles that holds the places lo .. hi; exact inside one tile."""
        lines = [_line(axis, n) for axis, n in zip(self.axes, tile, strict=True)]
        lo, hi = lo // math.prod(tile), hi // math.prod(tile)
        found = []
        for i, line in enumerate(lines):
            n, rest = len(line.there), math.prod(len(x.there) for x in lines[i + 1 :])
            together = lo // (rest * n) == hi // (rest * n)
            low = xp.where(together, lo // rest % n, 0)
            found.append(_ends(line, low, xp.where(together, hi // rest % n, n - 1), xp))
        return found

    def as_function(self, q_positions, k_positions, heads):
        q, k = _tokens(self.axes, self.q_tile), _tokens(self.axes, self.k_tile)
        rows = [read_at(x, q_positions, heads)[..., None] for x in (*q.first, *q.last)]
        columns = [read_at(x, k_positions, heads)[..., None, :] for x in k.member]
        return MaskFunction(_sees, tuple(MaskOperand(x) for x in (*rows, *columns)))

    def __repr__(self):
        given = tuple(zip(*self.axes, strict=True))
        return f"neighborhood{given} in tiles {self.q_tile}, {self.k_tile}"


def _sees(q_position: Any, k_position: Any, *elements: Any) -> Any:
    n = len(elements) // 3
    first, last, member = elements[:n], elements[n : 2 * n], elements[2 * n :]
    terms = zip(first, last, member, strict=True)
    return every_one((low <= m) & (m <= high) for low, high, m in terms)


def in_tiles(
    near: masks.Neighborhood, tile: PerAxis | None = None, key_tile: PerAxis | None = None
) -> TiledNeighborhood:
    """The mask of queries and keys that `tiles_of(near, tile).take` has put in order.

    A block of as many places as a tile has is judged exactly as the tile that it is; blocks that
    hold several, or a part, by the smallest box of tiles around them. `key_tile`: those of the
    keys, where they differ.
    """
    q, k = tiles_of(near, tile), tiles_of(near, tile if key_tile is None else key_tile)
    size = lambda cut: tuple(r + 1 for r in cut.reach)
    return TiledNeighborhood(near.axes, size(q), size(k))


# ------------------------------------------------------------------------------------- the count


class Visits(NamedTuple):
    """What attention in tiles visits.

    tiles    visited, of `all` there are; those that need no mask are `full`
    pairs    of a query and a key in the tiles visited
    needed   pairs that the neighborhood allows
    """

    tiles: int
    all: int
    full: int
    pairs: int
    needed: int


def visits(
    near: masks.Neighborhood, tile: PerAxis | None = None, key_tile: PerAxis | None = None
) -> Visits:
    """The count for tiles that are boxes: all / tiles is the bound of what skipping can win.

    A neighborhood is perfectly sparse in blocks where tiles == full.
    """
    mask = in_tiles(near, tile, key_tile)
    T, S = (extent.size for extent in mask.extents)
    return _counted(mask, near, T, S, math.prod(mask.q_tile), math.prod(mask.k_tile))


def row_visits(near: masks.Neighborhood, block_q: int, block_k: int) -> Visits:
    """The same for blocks of the grid's row-major order."""
    T = math.prod(axis.extent for axis in near.axes)
    return _counted(near, near, T, T, block_q, block_k)


def _counted(
    mask: masks.Mask, near: masks.Neighborhood, T: int, S: int, block_q: int, block_k: int
) -> Visits:
    kinds = mask.tiles(T, S, block_q, block_k)
    tiles, full = int((kinds != masks.EMPTY).sum()), int((kinds == masks.FULL).sum())
    seen = [_line(axis, axis.extent) for axis in near.axes]
    needed = math.prod(int(((x.last - x.first + 1) * x.there).sum()) for x in seen)
    return Visits(tiles, kinds.size, full, tiles * block_q * block_k, needed)


# ---------------------------------------------------------------------------------------- the op


@of_whole_text
@on_any_mesh
def tiled_neighborhood_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    k_extra: Float[Array, "B M K H"] | None = None,
    v_extra: Float[Array, "B M K D"] | None = None,
    *,
    near: masks.Neighborhood,
    tile: PerAxis | None = None,
    key_tile: PerAxis | None = None,
    impl: Impl = None,
) -> Out:
    """`neighborhood_attention` in the order of tiles, T = S = prod(shape), row-major as there.

    `near` is `masks.neighborhood(shape, window, stride, dilation, causal)`. `k_extra` and
    `v_extra` are M more keys and values, which every query sees under the same softmax. `tile` and
    `key_tile` are one number for all axes or one each, `tiles_of` tells of which cells; by default
    tiles of keys are like those of queries. `impl` None is blockwise, a block for a tile.
    """
    if (k_extra is None) != (v_extra is None):
        raise ValueError("k_extra, v_extra: got one of them, expected both or none")
    mask = in_tiles(near, tile, key_tile)
    cut = tiles_of(near, mask.q_tile), tiles_of(near, mask.k_tile)
    B, sizes = q.shape[0], (math.prod(mask.q_tile), math.prod(mask.k_tile))
    impl = Blockwise(*sizes) if impl is None else impl

    def ordered(x: Array, tiles: Boxes) -> Array:
        taken = tiles.take(x)
        return taken.reshape(B, tiles.cells.size, *x.shape[2:])

    args = ordered(q, cut[0]), ordered(k, cut[1]), ordered(v, cut[1])
    if k_extra is None or v_extra is None:
        out = attend(*args, mask=mask, impl=impl)
    else:
        beside = attend_state(args[0], k_extra, v_extra)
        out = join_states(attend_state(*args, mask=mask, impl=impl), beside).astype(q.dtype)
    n, c = cut[0].cells.shape
    return cut[0].restored(out.reshape(B * n, c, *out.shape[2:]))


def _near(z: Sizes) -> masks.Mask:
    shape = grid(z["T"])
    return masks.neighborhood(shape, tuple(min(3, n) for n in shape))


_whole = by_sizes(lambda z: masks.neighborhood(grid(z["T"]), grid(z["T"])))

OPS = (
    Op(
        tiled_neighborhood_attention,
        papers=(56, 1),
        reads="all",
        draw={"k_extra": normal(), "v_extra": normal(), "near": by_sizes(_near), "tile": (2, 3)},
        sizes={"T": 24, "S": 24},
        limits=(
            Limit(
                "a window as large as the grid is softmax attention",
                {"near": _whole, "k_extra": None, "v_extra": None},
                multi_head_attention,
            ),
        ),
    ),
)
