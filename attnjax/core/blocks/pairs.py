"""Selected blocks as tiles: what lets the loops of engine 1 run engine 3.

Which blocks of keys a block of queries attends to differs by example and head, and is known when
the program runs.  So a request is taken apart by heads (`over_heads`), and the pairs (query block,
key block) of one head are sorted by key block (`tile_lists_of_selection`): the queries of a tile
are then those, wherever they stand, that chose the same keys.  A tile is one dense product, rows
are read and written by gathers, and the state of a row merges over tiles in any order.

With P pairs, key blocks n and R query blocks in a tile there are at most P/R + n tiles, whatever
was selected: sizes are static, and the work is that of the blocks selected.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.masks import EMPTY, FULL, PARTIAL, Everything, at_example
from attnjax.core.masks.derived import of_heads
from attnjax.core.pairwise.request import Request
from attnjax.core.pairwise.tile_list import TileList
from attnjax.typing import Array


def over_heads(fn: Callable[[Request], Any], request: Request, mapped: Callable) -> Any:
    """fn of each head, or of each group that selects together, one at a time: (B,N,...) arrays.

    `fn` gets a call with B = K = 1 and positions (T,), (S,), and gives arrays (1,N,...).
    `mapped(f)` maps f over leading axes: `jax.vmap`, or `one_by_one`, where memory counts.
    """
    z = request.shape
    G = z.N // z.K
    separate = request.blocks.indices.shape[1] == z.N  # each query head has blocks of its own

    def of_head(request: Request, b: Array, n: Array) -> Any:
        mask = of_heads(request.mask, b, n, request.shape.N)
        flat = lambda x: x if x is None or x.ndim == 1 else x[0, 0]
        positions = {f: flat(getattr(request, f)) for f in ("q_positions", "k_positions")}
        return fn(replace(request, mask=mask, **positions))

    def of_group(request: Request, b: Array, n: Array) -> Any:
        if not separate:
            return of_head(request, b, n * G)
        each = lambda request, g: of_head(request, b, n * G + g)
        return _along(each, request, G, 1, mapped, replace(z, B=1, K=1, N=1))

    def of_example(request: Request, b: Array) -> Any:
        each = lambda request, n: of_group(request, b, n)
        return _along(each, request, z.K, 1, mapped, replace(z, B=1, K=1, N=G))

    return _along(of_example, request, z.B, 0, mapped, replace(z, B=1))


def over_examples(fn: Callable[[Request], Any], request: Request, mapped: Callable) -> Any:
    """fn of each example: (B,N,...) arrays.  `fn` gets a call with B = 1 and positions (T,), (S,).

    For a call whose positions differ by example; any other one goes to fn as it is.
    """
    if not request.differs_by_example:
        return fn(request)

    def of_example(request: Request, b: Array) -> Any:
        mask = of_heads(at_example(request.mask, b), b, 0, request.shape.N)
        flat = lambda x: x if x is None or x.ndim == 1 else x[0, 0]
        positions = {f: flat(getattr(request, f)) for f in ("q_positions", "k_positions")}
        return fn(replace(request, mask=mask, **positions))

    z = request.shape
    return _along(of_example, request, z.B, 0, mapped, replace(z, B=1))


def one_by_one(fn: Callable) -> Callable:
    """fn over leading axes in turn."""
    return functools.partial(lax.map, fn)


def _batch_axes(request: Request) -> Request:
    """For each array where its batch axis is, or -1; its heads follow."""
    none = jax.tree.map(lambda _: -1, request)
    at: dict[str, Any] = {name: 0 for name in ("q", "k", "v", "q_poison", "k_poison")}
    for name in ("q_positions", "k_positions"):
        x = getattr(request, name)
        at[name] = None if x is None else 0 if x.ndim == 3 else -1
    lead = lambda kind: 1 if kind.endswith("features") else 0
    return replace(
        none,
        **at,
        mods=tuple(replace(m, operands=tuple(map(lead, m.kinds))) for m in request.mods),
        normalizer=jax.tree.map(lambda _: 0, request.normalizer),
        selection=jax.tree.map(lambda _: 0, request.selection),
        dropout=jax.tree.map(lambda _: 0, request.dropout),
    )


def _split_axis(x: Array, axis: int, size: int) -> Array:
    """The axis as `size` parts of neighbors, which lead."""
    shape = (*x.shape[:axis], size, x.shape[axis] // size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _join_axis(x: Array, axis: int) -> Array:
    """Undoes `_split_axis`."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])


def _along(
    fn: Callable[[Request, Array], Any],
    request: Request,
    size: int,
    level: int,
    mapped: Callable,
    part: Any,
) -> Any:
    """fn(request of i, i) for i < size along the batch axes (level 0) or the heads (level 1).

    `part` is the shape of such a request.  Arrays that have one entry for all are not mapped over.
    """
    if size == 1:
        return fn(replace(request, shape=part), jnp.zeros((), jnp.int32))
    axes = jax.tree.map(lambda a: a + level if a >= 0 else -1, _batch_axes(request))
    varies = jax.tree.map(lambda x, a: a >= 0 and x.shape[a] > 1, request, axes)
    split = lambda x, a, varies: _split_axis(x, a, size) if varies else None
    each = jax.tree.map(split, request, axes, varies)

    def one(args: tuple[Array, Request]) -> Any:
        i, own = args
        combined = jax.tree.map(lambda x, varies, own: own if varies else x, request, varies, own)
        return fn(replace(combined, shape=part), i)

    out = mapped(one)((jnp.arange(size), each))
    return jax.tree.map(lambda x: _join_axis(x, level), out)


# ------------------------------------------------------------------------------ of one head


def visible(request: Request) -> Array:
    """Which keys the selection of one head shows to each query, (1,1,T,S)."""
    blocks, z = request.blocks, request.shape
    count = -(-z.S // blocks.block_k)
    indices = jnp.where(blocks.valid, blocks.indices, -1)[0, 0]  # (U,M)
    seen = (indices[:, :, None] == jnp.arange(count)[None, None]).any(1)
    wide = jnp.repeat(jnp.repeat(seen, blocks.block_q, 0), blocks.block_k, 1)
    return wide[None, None, : z.T, : z.S]


# Products of this many scores use both cores of a CPU (and keep a GPU busy); smaller ones cost
# more per score, fuller tiles less: a block's queries fill large tiles first, then small ones.
_LARGE = 1 << 17
_SMALLER = 4


class Pairs(NamedTuple):
    """The chosen pairs (query block, key block) of one head, by key block, then query block.

    key and query (U M,) are the blocks of each pair, those that do not count at the end; key block
    j has the pairs starts[j] .. ends[j] - 1.
    """

    key: Array
    query: Array
    starts: Array
    ends: Array


def tile_lists_of_selection(request: Request, rows: int | None) -> tuple[TileList, ...]:
    """The tiles of one head: `rows` queries each, or large and small ones if None."""
    blocks, z = request.blocks, request.shape
    (U, M), block_q, block_k = blocks.indices.shape[2:], blocks.block_q, blocks.block_k
    columns = -(-z.S // block_k)
    pairs = _sorted_pairs(blocks.indices[0, 0], blocks.valid[0, 0], columns)
    fill = -(-U * M // columns)  # query blocks that an average key block has
    if rows is not None:
        sizes = [max(1, rows // block_q)]
    else:
        large = max(1, _LARGE // (z.N * block_q * block_k))
        sizes = [large, max(1, min(large, fill) // _SMALLER)]
        sizes = sizes if sizes[1] < large <= U * M else sizes[1:]
    schedules: list[TileList] = []
    for size in sizes:
        last = size == sizes[-1]
        length = pairs.ends - pairs.starts
        count = -(-length // size) if last else length // size
        bound = min(U * M // size + (columns if last else 0), columns * -(-U // size))
        schedules += _tile_lists(request, pairs, count, size, bound)
        pairs = pairs._replace(starts=pairs.starts + count * size)
    return tuple(schedules)


def _sorted_pairs(indices: Array, valid: Array, columns: int) -> Pairs:
    """The pairs of one head's selection (U,M), for so many key blocks."""
    U = indices.shape[0]
    query = jnp.broadcast_to(jnp.arange(U, dtype=jnp.int32)[:, None], indices.shape)
    key = jnp.where(valid, indices, columns).astype(jnp.int32)
    if (columns + 1) * U < 2**31:  # one number for both sorts three times as fast
        code = jnp.sort((key * U + query).reshape(-1))
        key, query = code // U, code % U
    else:
        key, query = lax.sort((key.reshape(-1), query.reshape(-1)), num_keys=2)
    ends = jnp.searchsorted(key, jnp.arange(columns), side="right").astype(jnp.int32)
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), ends[:-1]])
    return Pairs(key, query, starts, ends)


def _tile_lists(
    request: Request, pairs: Pairs, count: Array, size: int, bound: int
) -> Iterator[TileList]:
    """For key block j count[j] tiles of `size` query blocks, at most `bound` in all; FULL first."""
    block_k = request.blocks.block_k
    rows, column, is_tile = _rows_of_tiles(request, pairs, count, size, bound)
    kind = jnp.where(is_tile, _kinds(request, rows, column), EMPTY)
    number = jnp.arange(bound)
    for one in (FULL, PARTIAL):  # a loop each: which of them a tile needs is no question there
        order = jnp.argsort(kind != one, stable=True)
        entries = jnp.stack([number, column[order], kind[order]], axis=1).astype(jnp.int32)
        yield TileList(
            entries, np.arange(bound + 1), rows.shape[1], block_k, (one,),
            rows=rows[order], used=(kind == one).sum(),
        )  # fmt: skip


def _rows_of_tiles(
    request: Request, pairs: Pairs, count: Array, size: int, bound: int
) -> tuple[Array, Array, Array]:
    """Queries (bound, size * block_q) and key block of each tile, and whether there is such a tile.

    Queries from T on are none.
    """
    z, block_q = request.shape, request.blocks.block_q
    tile_ends = jnp.cumsum(count)  # tiles up to each key block
    number = jnp.arange(bound)
    column = jnp.searchsorted(tile_ends, number, side="right")
    column = jnp.minimum(column, len(count) - 1)
    offset = number - (tile_ends - count)[column]  # among the tiles of its key block
    slot = (pairs.starts[column] + offset * size)[:, None] + jnp.arange(size)  # in the pairs
    is_real = slot < pairs.ends[column][:, None]
    no_row = -(-z.T // block_q) + jnp.arange(size)  # blocks beyond the last, each another
    block = jnp.where(is_real, pairs.query[jnp.minimum(slot, len(pairs.query) - 1)], no_row)
    rows = block[:, :, None] * block_q + jnp.arange(block_q)
    return rows.reshape(bound, -1).astype(jnp.int32), column, number < tile_ends[-1]


def _kinds(request: Request, rows: Array, column: Array) -> Array:
    """EMPTY, PARTIAL or FULL of each tile; FULL only where no row and no key is padding."""
    z, block_k = request.shape, request.blocks.block_k
    is_real = rows < z.T
    first = column * block_k
    whole = is_real.all(1) & (first + block_k <= z.S)
    if isinstance(mask := request.mask, Everything):
        return jnp.where(whole, FULL, PARTIAL)
    if request.q_positions is None or mask.by_row:
        positions = jnp.minimum(rows, z.T - 1)
    else:
        positions = request.q_positions.at[rows].get(mode="clip")
    q_lo = jnp.where(is_real, positions, 2**31 - 1).min(1)
    q_hi = jnp.where(is_real, positions, -1).max(1)
    k_lo, k_hi = first, jnp.minimum(first + block_k, z.S) - 1
    if request.k_positions is not None and not mask.by_row:
        keys = jnp.minimum(first[:, None] + jnp.arange(block_k), z.S - 1)
        positions = request.k_positions.at[keys].get(mode="clip")
        k_lo, k_hi = positions.min(1), positions.max(1)

    def verdict(*ends: Array) -> Array:
        kind = jnp.asarray(mask.classify(*(x.astype(jnp.int32)[None, None] for x in ends)))
        low, high = kind.min(), kind.max()  # one value for the heads of a group
        return jnp.where(low == high, low, PARTIAL)

    kind = jax.vmap(verdict)(q_lo, q_hi, k_lo, k_hi)
    return jnp.where(whole, kind, jnp.minimum(kind, PARTIAL))
