"""Tables of relative positions: looked up for a tile, and summed over by distance.

A table has R = 2*radius + 1 entries; the pair (i, j) reads entry radius + clip(pos_j - pos_i,
-radius, radius).  For contiguous spans the entries of a tile are constant along diagonals, so a
strip of size.q + size.k entries holds them all and a reshape lays it out: no gather.
"""

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core.pairwise.operands import Tile
from attnjax.typing import Array


def _strip(table: Array, first: Array | int, length: int) -> Array:
    """Entries first, first + 1, ... of the last axis, the end entries repeated beyond the ends."""
    R = table.shape[-1]
    edges = [(0, 0)] * (table.ndim - 1) + [(length, length)]
    start = jnp.clip(first + length, 0, R + length)
    return lax.dynamic_slice_in_dim(
        jnp.pad(table, edges, mode="edge"), start, length, table.ndim - 1
    )


def _diagonals_to_tile(strip: Array, bk: int) -> Array:
    """(..., t, t + s) -> (..., t, s): row i starts at entry t - 1 - i of its strip."""
    *lead, bq, width = strip.shape
    flat = strip.reshape(*lead, bq * width)
    rows = flat[..., bq - 1 : bq - 1 + bq * (width - 1)].reshape(*lead, bq, width - 1)
    return rows[..., :bk]


def _tile_to_diagonals(x: Array) -> Array:
    """The inverse layout, (..., t, s) -> (..., t, t + s), zeros elsewhere."""
    *lead, bq, bk = x.shape
    rows = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, bq - 1)]).reshape(*lead, bq * (bq + bk - 1))
    rows = jnp.pad(rows, [(0, 0)] * len(lead) + [(bq - 1, 1)])
    return rows.reshape(*lead, bq, bq + bk)


def look_up(kind: str, table: Array, tile: Tile) -> Array:
    """The entries of a table, query_table or key_table for every pair of the tile, (..., t, s)."""
    if kind == "key_table":  # the same with the roles of queries and keys exchanged
        mirrored = look_up("query_table", table[..., ::-1], Tile(tile.k, tile.q))
        return jnp.swapaxes(mirrored, -1, -2)
    radius = (table.shape[-1] - 1) // 2
    q, k = tile.q, tile.k
    if not (q.contiguous and k.contiguous):
        at = k.positions[None, :] - q.positions[:, None]
        at = radius + jnp.clip(at, -radius, radius)
        if kind == "table":
            return table[..., at]
        return jnp.take_along_axis(table, at[(None,) * (table.ndim - 2)], axis=-1)
    first = radius + k.start - q.start - (q.size - 1)
    strip = _strip(table, first, q.size + k.size)
    if kind == "table":
        strip = jnp.broadcast_to(strip[..., None, :], (*strip.shape[:-1], q.size, strip.shape[-1]))
    return _diagonals_to_tile(strip, k.size)


def sum_by_distance(weights: Array, table: Array, tile: Tile) -> Array:
    """sum_s weights[..., t, s] table[..., radius + clip(s - t), :], (..., t, D)."""
    radius = (table.shape[-2] - 1) // 2
    q, k = tile.q, tile.k
    if q.contiguous and k.contiguous:
        first = radius + k.start - q.start - (q.size - 1)
        rows = jnp.swapaxes(_strip(jnp.swapaxes(table, -1, -2), first, q.size + k.size), -1, -2)
        return _tile_to_diagonals(weights) @ rows
    at = radius + jnp.clip(k.positions[None, :] - q.positions[:, None], -radius, radius)
    mass = jnp.zeros((*weights.shape[:-1], table.shape[-2]), weights.dtype)
    mass = jax.vmap(lambda m, w, i: m.at[..., i].add(w), (-2, -2, 0), -2)(mass, weights, at)
    return mass @ table
