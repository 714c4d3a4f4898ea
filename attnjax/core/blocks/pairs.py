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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.masks import EMPTY, FULL, PARTIAL, Everything
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


def one_by_one(fn: Callable) -> Callable:
    """fn over leading axes in turn."""
    return functools.partial(lax.map, fn)


def _axes(request: Request) -> Request:
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
    )


def _along(
    fn: Callable[[Request, Array], Any],
    request: Request,
    size: int,
    level: int,
    mapped: Callable,
    part: Any,
) -> Any:
    """fn(call of i, i) for i < size along the batch axes (level 0) or the heads (level 1)."""
    if size == 1:
        return fn(replace(request, shape=part), jnp.zeros((), jnp.int32))
    leaves, tree = jax.tree.flatten(request)
    axes = [a + level if a >= 0 else -1 for a in jax.tree.leaves(_axes(request))]
    split = [a >= 0 and x.shape[a] > 1 for x, a in zip(leaves, axes, strict=True)]

    def leading(x: Array, axis: int) -> Array:
        shape = (*x.shape[:axis], size, x.shape[axis] // size, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis, 0)

    each = [leading(x, a) for x, a, s in zip(leaves, axes, split, strict=True) if s]

    def one(args: tuple[Array, list[Array]]) -> Any:
        i, given = args
        rest = iter(given)
        here = [next(rest) if s else x for x, s in zip(leaves, split, strict=True)]
        return fn(replace(jax.tree.unflatten(tree, here), shape=part), i)

    out = mapped(one)((jnp.arange(size), each))
    merge = lambda x: jnp.moveaxis(x, 0, level).reshape(
        *x.shape[1 : 1 + level], size * x.shape[1 + level], *x.shape[2 + level :]
    )
    return jax.tree.map(merge, out)


# ------------------------------------------------------------------------------ of one head


def visible(request: Request) -> Array:
    """Which keys the selection of one head shows to each query, (T,S)."""
    blocks, z = request.blocks, request.shape
    count = -(-z.S // blocks.block_k)
    indices = jnp.where(blocks.valid, blocks.indices, -1)[0, 0]  # (U,M)
    seen = (indices[:, :, None] == jnp.arange(count)).any(1)
    wide = jnp.repeat(jnp.repeat(seen, blocks.block_q, 0), blocks.block_k, 1)
    return wide[: z.T, : z.S]


# Products of this many scores use both cores of a CPU (and keep a GPU busy); smaller ones cost
# more per score, fuller tiles less: a block's queries fill large tiles first, then small ones.
_LARGE = 1 << 17
_SMALLER = 4


def tile_lists_of_selection(request: Request, rows: int | None) -> tuple[TileList, ...]:
    """The tiles of one head: `rows` queries each, or large and small ones if None."""
    blocks, z = request.blocks, request.shape
    (U, M), block_q, block_k = blocks.indices.shape[2:], blocks.block_q, blocks.block_k
    columns = -(-z.S // block_k)
    key, query = _sorted_pairs(blocks.indices[0, 0], blocks.valid[0, 0], columns)
    ends = jnp.searchsorted(key, jnp.arange(columns), side="right").astype(jnp.int32)
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), ends[:-1]])
    fill = -(-U * M // columns)  # query blocks that an average key block has
    if rows is not None:
        sizes = [max(1, rows // block_q)]
    else:
        large = max(1, _LARGE // (z.N * block_q * block_k))
        sizes = [large, max(1, min(large, fill) // _SMALLER)]
        sizes = sizes if sizes[1] < large <= U * M else sizes[1:]
    schedules = []
    for size in sizes:
        last = size == sizes[-1]
        count = -(-(ends - starts) // size) if last else (ends - starts) // size
        bound = min(U * M // size + (columns if last else 0), columns * -(-U // size))
        schedules += _tiles(request, key, query, starts, ends, count, size, bound)
        starts = starts + count * size
    return tuple(schedules)


def _sorted_pairs(indices: Array, valid: Array, columns: int) -> tuple[Array, Array]:
    """(key block, query block) of all pairs by key block, then query block; invalid ones last."""
    U = indices.shape[0]
    query = jnp.broadcast_to(jnp.arange(U, dtype=jnp.int32)[:, None], indices.shape)
    key = jnp.where(valid, indices, columns).astype(jnp.int32)
    if (columns + 1) * U < 2**31:  # one number for both sorts three times as fast
        code = jnp.sort((key * U + query).reshape(-1))
        return code // U, code % U
    return tuple(lax.sort((key.reshape(-1), query.reshape(-1)), num_keys=2))  # type: ignore


def _tiles(request, key, query, starts, ends, count, size, bound) -> Iterator[TileList]:
    """`count` tiles of `size` query blocks for each key block, from `starts` on in the pairs."""
    blocks, z = request.blocks, request.shape
    block_q, block_k, columns = blocks.block_q, blocks.block_k, len(ends)
    tile_ends = jnp.cumsum(count)
    number = jnp.arange(bound)
    column = jnp.minimum(jnp.searchsorted(tile_ends, number, side="right"), columns - 1)
    within = number - (tile_ends - count)[column]
    place = (starts[column] + within * size)[:, None] + jnp.arange(size)  # (tiles, size)
    there = place < ends[column][:, None]
    beyond = -(-z.T // block_q) + jnp.arange(size)  # rows that are none, each another
    block = jnp.where(there, query[jnp.minimum(place, len(query) - 1)], beyond)
    rows = (block[:, :, None] * block_q + jnp.arange(block_q)).reshape(bound, -1).astype(jnp.int32)
    kind = jnp.where(number < tile_ends[-1], _kinds(request, rows, column), EMPTY)
    for one in (FULL, PARTIAL):  # a loop each: which of them a tile needs is no question there
        order = jnp.argsort(kind != one, stable=True)
        entries = jnp.stack([number, column[order], kind[order]], axis=1).astype(jnp.int32)
        yield TileList(
            entries, np.arange(bound + 1), rows.shape[1], block_k, (one,),
            rows=rows[order], used=(kind == one).sum(),
        )  # fmt: skip


def _kinds(request: Request, rows: Array, column: Array) -> Array:
    """EMPTY, PARTIAL or FULL of each tile; FULL only where no row and no key is padding."""
    z, block_k = request.shape, request.blocks.block_k
    real = rows < z.T
    first = column * block_k
    last = jnp.minimum(first + block_k, z.S) - 1
    whole = real.all(1) & (first + block_k <= z.S)
    if isinstance(mask := request.mask, Everything):
        return jnp.where(whole, FULL, PARTIAL)
    at = jnp.minimum(rows, z.T - 1) if request.q_positions is None else (
        request.q_positions.at[rows].get(mode="clip")
    )  # fmt: skip
    q_lo, q_hi = jnp.where(real, at, 2**31 - 1).min(1), jnp.where(real, at, -1).max(1)
    k_lo, k_hi = first, last
    if request.k_positions is not None:
        keys = first[:, None] + jnp.arange(block_k)
        of = request.k_positions.at[jnp.minimum(keys, z.S - 1)].get(mode="clip")
        k_lo, k_hi = of.min(1), of.max(1)

    def verdict(*ends: Array) -> Array:
        kind = jnp.asarray(mask.classify(*(x.astype(jnp.int32)[None, None] for x in ends)))
        low, high = kind.min(), kind.max()  # one value for the heads of a group
        return jnp.where(low == high, low, PARTIAL)

    kind = jax.vmap(verdict)(q_lo, q_hi, k_lo, k_hi)
    return jnp.where(whole, kind, jnp.minimum(kind, PARTIAL))
