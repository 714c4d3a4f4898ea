"""Tiles of the score matrix, and arrays of queries, keys or both in a layout to cut them.

A tile is a range of queries times a range of keys.  Scores live as (B,N,t,s).  Every operand of a
mod is brought to a layout that broadcasts against that, once, and is then cut tile by tile:

    kind            given as                      laid out as
    query           (T,) or (B,T,N)               (B,N,T,1)
    key             (S,) or (B,S,K) or (B,S,N)    (B,N,1,S)
    head            () or (N,)                    (1,N,1,1)
    pair            broadcastable to (B,N,T,S)    (B,N,T,S), broadcast axes stay 1
    table           (R,) or (N,R)                 (1,N,R)
    query_table     (B,T,N,R)                     (B,N,T,R)
    key_table       (B,S,K) or (B,S,N), R         (B,N,S,R)
    query_features  (B,T,N,R)                     (R,B,N,T,1)
    key_features    (B,S,K) or (B,S,N), R         (R,B,N,1,S)
    head_features   (R,) or (N,R)                 (R,1,N,1,1)

What belongs to a key/value head is repeated for the query heads that share it.
The same cut serves the whole matrix (one tile: the dense form), a tile, a step around a ring and a
decoding step.  Tables hold one entry per relative position and are looked up in `relative`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from attnjax.typing import Array

# kind -> the axes along T and along S in the layout above
AXES: dict[str, tuple[int | None, int | None]] = {
    "query": (-2, None),
    "key": (None, -1),
    "head": (None, None),
    "pair": (-2, -1),
    "table": (None, None),
    "query_table": (-2, None),
    "key_table": (None, -2),
    "query_features": (-2, None),
    "key_features": (None, -1),
    "head_features": (None, None),
}
KINDS = tuple(AXES)


@dataclass(frozen=True)
class Shape:
    """The letters of one call."""

    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    D: int


@dataclass(frozen=True)
class Span:
    """Queries or keys: a range of them, or rows chosen one by one, and their positions (size,).

    start        where the range starts
    contiguous   positions are start, start + 1, ...: tables are read by slices, not by gathers
    rows         (size,) which rows, in place of a range; a row beyond the end is none: what is read
                 for it is some other row's, and nothing is written
    """

    start: Array | int
    size: int
    positions: Array
    contiguous: bool
    rows: Array | None = None

    @property
    def places(self) -> Array:
        """Which ones of the call they are, (size,)."""
        if self.rows is not None:
            return self.rows
        return self.start + jnp.arange(self.size, dtype=jnp.int32)


@dataclass(frozen=True)
class Tile:
    q: Span
    k: Span


def span(start: Array | int, size: int, positions: Array | np.ndarray | None) -> Span:
    """The range [start, start + size) of a sequence whose positions are given, or 0, 1, 2 ..."""
    if positions is None:
        return Span(start, size, start + jnp.arange(size, dtype=jnp.int32), True)
    return Span(start, size, lax.dynamic_slice_in_dim(positions, start, size), False)


def chosen_rows(rows: Array, positions: Array | None) -> Span:
    """The given rows of a sequence whose positions are given, or 0, 1, 2 ..."""
    at = rows if positions is None else positions.at[rows].get(mode="clip")
    return Span(0, rows.shape[0], at, False, rows)


def take_at(x: Array, at: Span, axis: int) -> Array:
    """The part of x that lies at the span along the axis."""
    if at.rows is None:
        return lax.dynamic_slice_in_dim(x, at.start, at.size, axis % x.ndim)
    return jnp.take(x, at.rows, axis=axis, mode="clip")


def put_at(x: Array, part: Array, at: Span, axis: int) -> Array:
    """x with `part` in the place that `take_at` reads."""
    if at.rows is None:
        return lax.dynamic_update_slice_in_dim(x, part, at.start, axis % x.ndim)
    where = (slice(None),) * (axis % x.ndim) + (at.rows,)
    return x.at[where].set(part, mode="drop", unique_indices=True)


def add_at(x: Array, part: Array, at: Span, axis: int) -> Array:
    """x with `part` added in the place that `take_at` reads."""
    return put_at(x, take_at(x, at, axis) + part, at, axis)


# ---------------------------------------------------------------------------------- layout


class Places(NamedTuple):
    """Positions of a call's queries (T,) and keys (S,), None where they are 0, 1, 2, ..."""

    q: Array | np.ndarray | None
    k: Array | np.ndarray | None


NOWHERE = Places(None, None)


def of_text(kind: str, x: Array, z: Shape, at: Places) -> Array:
    """An operand as given; where it is for more tokens than the call has, read at positions.

    Raises ValueError where it has none for a position that is known; a traced one beyond it reads
    NaN.
    """
    first = 0 if x.ndim == 1 else 1
    axes = {"pair": (x.ndim - 2, x.ndim - 1), "query": (first, None), "key": (None, first)}
    sides = axes.get(kind.split("_")[0], (None, None))
    of_call = ("q_positions", z.T, at.q), ("k_positions", z.S, at.k)
    for axis, (name, length, positions) in zip(sides, of_call, strict=True):
        if axis is None or not 0 <= axis < x.ndim or positions is None or x.shape[axis] <= length:
            continue
        size = x.shape[axis]
        if not isinstance(positions, Tracer):
            low, high = int(np.min(positions)), int(np.max(positions))
            if not 0 <= low <= high < size:
                raise ValueError(
                    f"mods: a {kind} operand has shape {x.shape}, for {size} positions; expected "
                    f"those of a text that holds all of {name}, which are {low} .. {high}, or "
                    f"{length} of the call's own"
                )
        x = jnp.take(x, jnp.asarray(positions), axis=axis, mode="fill", fill_value=jnp.nan)
    return x


def lay_out(kind: str, x: Array, z: Shape) -> Array:
    """Brings one operand to the layout of its kind; a ValueError names what does not fit."""
    given = x.shape

    def fit(*accepted: tuple[str, tuple[int, ...]]) -> None:
        if given not in [shape for _, shape in accepted]:
            expected = " or ".join(f"({letters}) = {shape}" for letters, shape in accepted)
            raise ValueError(f"mods: a {kind} operand has shape {given}, expected {expected}")

    def per_head(x: Array, axis: int) -> Array:
        return x if x.shape[axis] == z.N else jnp.repeat(x, z.N // z.K, axis)

    if kind == "query":
        fit(("T", (z.T,)), ("B,T,N", (z.B, z.T, z.N)))
        return x[None, None, :, None] if x.ndim == 1 else x.transpose(0, 2, 1)[..., None]
    if kind == "key":
        fit(("S", (z.S,)), ("B,S,K", (z.B, z.S, z.K)), ("B,S,N", (z.B, z.S, z.N)))
        if x.ndim == 1:
            return x[None, None, None, :]
        return per_head(x.transpose(0, 2, 1), 1)[:, :, None, :]
    if kind == "head":
        fit(("", ()), ("N", (z.N,)))
        return x.reshape(1, -1, 1, 1)
    if kind == "pair":
        full = (z.B, z.N, z.T, z.S)
        if x.ndim > 4 or any(
            a not in (1, b) for a, b in zip(given[::-1], full[::-1], strict=False)
        ):
            raise ValueError(
                f"mods: a pair operand has shape {given}, expected one broadcastable to "
                f"(B,N,T,S) = {full}"
            )
        return x.reshape((1,) * (4 - x.ndim) + given)
    R = given[-1] if given else 0
    if kind in ("table", "head_features"):
        fit(("R", (R,)), ("N,R", (z.N, R)))
        x = x.reshape(1, -1, R)
        return x if kind == "table" else x.transpose(2, 0, 1)[..., None, None]
    if kind.startswith("query"):
        fit(("B,T,N,R", (z.B, z.T, z.N, R)))
    else:
        fit(("B,S,K,R", (z.B, z.S, z.K, R)), ("B,S,N,R", (z.B, z.S, z.N, R)))
    x = per_head(x.transpose(0, 2, 1, 3), 1)
    if kind.endswith("table"):
        return x
    x = jnp.moveaxis(x, -1, 0)
    return x[..., None] if kind == "query_features" else x[..., None, :]


def without_nan(kind: str, x: Array) -> tuple[Array, Array]:
    """A laid-out operand of queries or keys with zeros for NaN, and NaN for the rows that had one.

    The second is (B|1,N|1,T,1) or (B|1,N|1,1,S), zero elsewhere, and has no gradient.
    """
    nan = jnp.isnan(lax.stop_gradient(x))
    bad = nan
    if kind.endswith("features"):
        bad = nan.any(0)
    elif kind.endswith("table"):
        bad = nan.any(-1)
        bad = bad[..., None] if kind == "query_table" else bad[..., None, :]
    return jnp.where(nan, 0.0, x), jnp.where(bad, jnp.nan, 0.0).astype(x.dtype)


def token_axes(kind: str, x: Array) -> tuple[int | None, int | None]:
    """The axes of x along T and S, counted from the front; an axis that broadcasts is none."""
    broadcast = lambda axis: kind == "pair" and x.shape[axis] == 1
    t, s = (None if a is None or broadcast(a) else a % x.ndim for a in AXES[kind])
    return t, s


def cut_to_tile(kind: str, x: Array, tile: Tile) -> Array:
    """The part of a laid-out operand that belongs to the tile."""
    for axis, at in zip(token_axes(kind, x), (tile.q, tile.k), strict=True):
        if axis is not None:
            x = take_at(x, at, axis)
    return x


def add_to_tile(kind: str, x: Array, part: Array, tile: Tile) -> Array:
    """x with `part` added where `cut_to_tile` would have taken it."""
    t, s = token_axes(kind, x)
    if t is None:
        return x + part if s is None else add_at(x, part, tile.k, s)
    if s is not None:
        part = add_at(take_at(x, tile.q, t), part, tile.k, s)
        return put_at(x, part, tile.q, t)
    return add_at(x, part, tile.q, t)
