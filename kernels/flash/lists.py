"""Lists of tiles for the kernels: from kinds of tiles, or from selected blocks.

Kinds are numbers: 0 EMPTY, 1 PARTIAL (masked), 2 FULL (not masked); NumPy where they are known when
JAX traces, so that EMPTY tiles take no room.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.kernels.flash.triton import Lists

EMPTY, PARTIAL, FULL = 0, 1, 2


def with_tails(kinds: Any, T: int, S: int, block_q: int, block_k: int) -> Any:
    """Tiles that reach beyond the last query or key have to be masked."""
    xp = jnp if isinstance(kinds, jax.Array) else np
    rows, columns = kinds.shape[-2:]
    cut = np.zeros((rows, columns), bool)
    cut[-1] |= T % block_q != 0
    cut[:, -1] |= S % block_k != 0
    return xp.where(cut, xp.minimum(kinds, PARTIAL), kinds)


def of_kinds(kinds: Any, tile: int) -> Lists:
    """For each row of (B|1,N|1,rows,columns) its FULL, then its PARTIAL columns, `tile` apart."""
    xp = jnp if isinstance(kinds, jax.Array) else np
    B, N, rows, columns = kinds.shape
    full, some = (kinds == FULL).sum(-1), (kinds != EMPTY).sum(-1)
    order = xp.argsort(-kinds.astype(np.int8), axis=-1, stable=True).astype(np.int32)
    if xp is jnp:
        first = jnp.arange(N * rows).reshape(1, N, rows) * columns
        bounds = jnp.stack([jnp.broadcast_to(first, full.shape), first + full, first + some], -1)
        return Lists(bounds.astype(jnp.int32), (order * tile).reshape(B, -1))
    flat = some.reshape(B, -1)
    first = np.cumsum(flat, 1) - flat
    bounds = np.stack([first, first + full.reshape(B, -1), first + flat], -1)
    entries = np.zeros((B, max(1, int(flat.sum(1).max()))), np.int32)
    held = np.arange(columns) < some[..., None]
    for b in range(B):
        row = order[b][held[b]]
        entries[b, : len(row)] = row * tile
    return Lists(bounds.reshape(B, N, rows, 3).astype(np.int32), entries)


def transposed(kinds: Any) -> Any:
    return kinds.swapaxes(-1, -2)


def of_selection(indices: jax.Array, valid: jax.Array, block_k: int, tile: int, kind: int) -> Lists:
    """The tiles of the selected key blocks (B,X,U,M) of each block of queries."""
    B, X, U, M = indices.shape
    each = -(-block_k // tile)
    far = jnp.iinfo(jnp.int32).max
    block = jnp.sort(jnp.where(valid, indices.astype(jnp.int32), far), axis=-1)
    starts = jnp.where(block == far, 0, block)[..., None] * block_k + jnp.arange(each) * tile
    first = jnp.arange(X * U, dtype=jnp.int32).reshape(1, X, U) * (M * each)
    last = first + valid.sum(-1, dtype=jnp.int32) * each
    return _bounded(jnp.broadcast_to(first, last.shape), last, starts.reshape(B, -1), kind)


def of_selected(
    indices: jax.Array, valid: jax.Array, blocks: int, block_q: int, tile: int, kind: int
) -> Lists:
    """The tiles of the query blocks that selected each of so many key blocks."""
    B, X, U, M = indices.shape
    each = -(-block_q // tile)
    query = jnp.arange(U, dtype=jnp.int32)[:, None]
    code = jnp.where(valid, indices.astype(jnp.int32) * U + query, blocks * U)
    code = jnp.sort(code.reshape(B, X, U * M), axis=-1)
    starts = (code % U)[..., None] * block_q + jnp.arange(each, dtype=jnp.int32) * tile
    edges = jnp.arange(blocks + 1, dtype=jnp.int32) * U
    find = jax.vmap(jax.vmap(lambda row: jnp.searchsorted(row, edges)))
    place = find(code).astype(jnp.int32) * each
    place = place + (jnp.arange(X, dtype=jnp.int32) * (U * M * each))[:, None]
    return _bounded(place[..., :-1], place[..., 1:], starts.reshape(B, -1), kind)


def _bounded(first: jax.Array, last: jax.Array, entries: jax.Array, kind: int) -> Lists:
    middle = last if kind == FULL else first
    return Lists(jnp.stack([first, middle, last], -1), entries.astype(jnp.int32))
