"""Masks with arrays: lengths, layouts of blocks, any boolean array."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from attnjax.core.masks.base import (
    FAR,
    PARTIAL,
    Extent,
    Mask,
    checked_array,
    checked_int,
    checked_ints,
    constant,
    every_one,
    numpy_of,
    rank4,
    same_rank,
    static_field,
    verdict,
)
from attnjax.core.masks.functions import MaskFunction, MaskOperand, read_at

# ---------------------------------------------------------------- masks with arrays


@register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class Lengths(Mask):
    """q_pos < q[b] and k_pos < k[b]; None is no limit on that side."""

    q: Any
    k: Any

    def allowed(self, q_pos, k_pos):
        return self._below(q_pos, k_pos)

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        return verdict(self._below(q_lo, k_lo), self._below(q_hi, k_hi))

    def as_function(self, q_positions, k_positions, heads):
        everywhere = jnp.full((1,), FAR, jnp.int32)
        ends = [everywhere if n is None else jnp.asarray(n, jnp.int32) for n in (self.q, self.k)]
        operands = tuple(MaskOperand(n[:, None, None, None]) for n in ends)
        return MaskFunction(_before_ends, operands)

    def _below(self, q_pos, k_pos):
        sides = [(rank4(x), n) for x, n in ((q_pos, self.q), (k_pos, self.k)) if n is not None]
        return every_one(x < n[:, None, None, None].astype(x.dtype) for x, n in sides)


@register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class BoolArray(Mask):
    """mask[.., q, k]; a dimension of size one serves all positions."""

    mask: Any

    def resolve(self, T, S):
        rows, columns = self.mask.shape[-2:]
        if rows not in (1, T) or columns not in (1, S):
            want = f"(.., {T} or 1, {S} or 1)"
            raise ValueError(f"array: mask has shape {self.mask.shape}, expected {want}")
        return self

    @property
    def extents(self):
        rows, columns = self.mask.shape[-2:]
        name = f"array: mask of shape {self.mask.shape}"
        return tuple(None if n == 1 else Extent(name, n) for n in (rows, columns))

    def allowed(self, q_pos, k_pos):
        xp, (rows, columns) = numpy_of(self, q_pos, k_pos), self.mask.shape[-2:]
        q, k = xp.clip(q_pos, 0, rows - 1), xp.clip(k_pos, 0, columns - 1)
        return xp.asarray(self.mask)[..., q, k]

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        xp, (rows, columns) = numpy_of(self, q_lo, q_hi, k_lo, k_hi), self.mask.shape[-2:]
        top, bottom = xp.clip(q_lo, 0, rows - 1), xp.clip(q_hi, 0, rows - 1) + 1
        left, right = xp.clip(k_lo, 0, columns - 1), xp.clip(k_hi, 0, columns - 1) + 1
        inside = _counts(self.mask, top, bottom, left, right)
        _, area = same_rank(inside, (bottom - top) * (right - left))
        return verdict(inside > 0, inside == area)

    def as_function(self, q_positions, k_positions, heads):
        return _read_cells(self.mask, (1, 1))

    def of_pairs(self, q_at, k_at) -> MaskFunction:
        """The function of the elements at rows (T,) and columns (S,), one for each pair."""
        mask, (rows, columns) = rank4(jnp.asarray(self.mask)), self.mask.shape[-2:]
        if rows > 1:
            mask = jnp.take(mask, q_at, axis=2, mode="clip")
        if columns > 1:
            mask = jnp.take(mask, k_at, axis=3, mode="clip")
        return MaskFunction(_cell_value, (MaskOperand(mask),))


@register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class BlockLayout(Mask):
    """layout[.., q // block_q, k // block_k], for a layout (nq, nk) or (N|1, nq, nk)."""

    layout: Any
    block_q: int = static_field()
    block_k: int = static_field()

    def resolve(self, T, S):
        covers = self.layout.shape[-2] * self.block_q, self.layout.shape[-1] * self.block_k
        if covers[0] < T or covers[1] < S:
            raise ValueError(
                f"block_layout: layout {self.layout.shape} of {self.block_q} x {self.block_k} "
                f"blocks covers {covers}, expected at least (T, S) = {(T, S)}"
            )
        return self

    @property
    def extents(self):
        rows, columns = self.layout.shape[-2] * self.block_q, self.layout.shape[-1] * self.block_k
        name = f"block_layout: layout {self.layout.shape} of {self.block_q} x {self.block_k} blocks"
        return tuple(Extent(name, n, rides=False, exact=False) for n in (rows, columns))

    def allowed(self, q_pos, k_pos):
        return self._cells.allowed(q_pos // self.block_q, k_pos // self.block_k)

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        q, k = self.block_q, self.block_k
        return self._cells.classify(q_lo // q, q_hi // q, k_lo // k, k_hi // k)

    def as_function(self, q_positions, k_positions, heads):
        return _read_cells(self.layout, (self.block_q, self.block_k))

    @property
    def _cells(self):
        return BoolArray(self.layout if self.layout.ndim == 2 else self.layout[None])


@register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class Until(Mask):
    """q_pos <= last[b, n, k_pos]; see `until`."""

    last: Any

    def resolve(self, T, S):
        if self.last.shape[-1] != S:
            want = f"(B|1, N|1, {S})"
            raise ValueError(f"until: last has shape {self.last.shape}, expected {want}")
        return self

    @property
    def extents(self):
        return None, Extent(f"until: last of shape {self.last.shape}", self.last.shape[-1])

    def allowed(self, q_pos, k_pos):
        xp = numpy_of(self, q_pos, k_pos)
        return rank4(q_pos) <= xp.take(xp.asarray(self.last), k_pos, axis=-1, mode="clip")

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        return constant(PARTIAL, np.int8, q_lo, k_lo)

    def as_function(self, q_positions, k_positions, heads):
        last = read_at(jnp.asarray(self.last, jnp.int32), k_positions, heads)
        return MaskFunction(_not_after, (MaskOperand(last[:, :, None, :]),))


def _not_after(q_position: Any, k_position: Any, last: Any) -> Any:
    return q_position <= last


def until(last: Any) -> Mask:
    """q_pos <= last[b, n, k_pos], for (B|1, N|1, S) ints: the last query that sees each key.

    May be traced; nothing is known of rectangles, so combine it with masks or blocks that skip.
    """
    return Until(checked_ints("until: last", last, {3: "(B|1, N|1, S)"}))


def lengths(q: Any = None, k: Any = None) -> Mask:
    """q_pos < q[b] and k_pos < k[b], for (B,) ints: right padding of queries, keys or both."""
    if q is None and k is None:
        raise ValueError("lengths: q and k are both None, expected (B,) integers for one at least")
    check = lambda name, n: n if n is None else checked_ints(f"lengths: {name}", n, {1: "(B,)"})
    return Lengths(check("q", q), check("k", k))


def block_layout(layout: Any, block_q: int, block_k: int) -> Mask:
    """Whole blocks of block_q x block_k, for a bool layout (nq, nk) or (N|1, nq, nk).

    Such as the random blocks of BigBird and the strides of Sparse Transformers.
    """
    layout = checked_array(
        "block_layout: layout", layout, np.bool_, {2: "(nq, nk)", 3: "(N, nq, nk)"}
    )
    block_q = checked_int("block_layout: block_q", block_q, 1)
    block_k = checked_int("block_layout: block_k", block_k, 1)
    return BlockLayout(layout, block_q, block_k)


def array(mask: Any) -> Mask:
    """Any bool array, (T, S) or broadcastable to (B, N, T, S); True may attend."""
    return BoolArray(checked_array("array: mask", mask, np.bool_, {2: "(T, S)", 4: "(B, N, T, S)"}))


def _before_ends(q_position: Any, k_position: Any, q_end: Any, k_end: Any) -> Any:
    return (q_position < q_end) & (k_position < k_end)


def _cell_value(q_position: Any, k_position: Any, value: Any) -> Any:
    return value


def _read_cells(layout: Any, cell: tuple[int, int]) -> MaskFunction:
    return MaskFunction(_cell_value, (MaskOperand(rank4(jnp.asarray(layout)), cell),))


def lookup(table: Any, pos: Any, xp: Any) -> Any:
    """table[.., pos] for a table (X,), or (B, 1, *pos.shape) for (B, X)."""
    return xp.take(table if table.ndim == 1 else table[:, None], pos, axis=-1, mode="clip")


# ---------------------------------------------------------------- rectangles of an array

_STRIP = 1 << 21  # elements of which running sums are held at once


def _counts(mask: Any, top: Any, bottom: Any, left: Any, right: Any) -> Any:
    """How many elements hold in each rectangle, rows top .. bottom - 1, columns left .. right - 1.

    For (nq,1) rows and (1,nk) columns with little memory beside the mask: columns of a strip of
    rows are summed up first, as there are fewer rectangles than columns.
    """
    xp = numpy_of(mask, top, bottom, left, right)
    if np.ndim(top) != 2 or np.ndim(left) != 2 or top.shape[1] > 1 or left.shape[0] > 1:
        return _counts_one_by_one(xp.asarray(mask), top, bottom, left, right)
    if xp is np:
        *lead, T, S = mask.shape
        parts = np.empty((*lead, T, left.shape[1]), np.int32)
        step = max(1, _STRIP // max(1, S * int(np.prod(lead))))
        for row in range(0, T, step):
            strip = slice(row, row + step)
            parts[..., strip, :] = _between(mask[..., strip, :], left[0], right[0], -1)
    else:
        parts = _between(xp.asarray(mask), left[0], right[0], -1)
    return _between(parts, top[:, 0], bottom[:, 0], -2)


def _between(x: Any, start: Any, stop: Any, axis: int) -> Any:
    """Sums over start .. stop - 1 along the axis, int32."""
    xp = numpy_of(x, start, stop)
    sums = x.cumsum(axis=axis, dtype=np.int32)
    upto = lambda end: xp.take(sums, end, axis=axis, mode="clip")
    shape = [1] * x.ndim
    shape[axis] = -1
    before = xp.where((start > 0).reshape(shape), upto(start - 1), np.int32(0))
    return upto(stop - 1) - before


def _counts_one_by_one(mask: Any, top: Any, bottom: Any, left: Any, right: Any) -> Any:
    """The same for ends that broadcast in any way, from the sums above and left of each corner."""
    xp = numpy_of(mask, top, bottom, left, right)
    sums = mask.cumsum(axis=-2, dtype=np.int32).cumsum(axis=-1, dtype=np.int32)

    def upto(row: Any, column: Any) -> Any:
        inside = (row > 0) & (column > 0)
        return xp.where(inside, sums[..., row - 1, column - 1], np.int32(0))

    return upto(bottom, right) - upto(top, right) - upto(bottom, left) + upto(top, left)
