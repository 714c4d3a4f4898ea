"""Masks with arrays: lengths, layouts of blocks, any boolean array."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from attnjax.core.masks.base import (
    FAR,
    PARTIAL,
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

    def allowed(self, q_pos, k_pos):
        xp, (rows, columns) = numpy_of(self, q_pos, k_pos), self.mask.shape[-2:]
        q, k = xp.clip(q_pos, 0, rows - 1), xp.clip(k_pos, 0, columns - 1)
        return xp.asarray(self.mask)[..., q, k]

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        xp, (rows, columns) = numpy_of(self, q_lo, q_hi, k_lo, k_hi), self.mask.shape[-2:]
        top, bottom = xp.clip(q_lo, 0, rows - 1), xp.clip(q_hi, 0, rows - 1) + 1
        left, right = xp.clip(k_lo, 0, columns - 1), xp.clip(k_hi, 0, columns - 1) + 1
        # sums[.., i, j] counts what is allowed above and left of corner (i, j)
        sums = self.mask.cumsum(axis=-2, dtype=np.int32).cumsum(axis=-1, dtype=np.int32)
        pad = numpy_of(sums).pad
        sums = xp.asarray(pad(sums, [(0, 0)] * (sums.ndim - 2) + [(1, 0), (1, 0)]))
        inside = sums[..., bottom, right] - sums[..., top, right]
        inside -= sums[..., bottom, left] - sums[..., top, left]
        _, area = same_rank(inside, (bottom - top) * (right - left))
        return verdict(inside > 0, inside == area)

    def as_function(self, q_positions, k_positions, heads):
        return _read_cells(self.mask, (1, 1))


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
