"""Packed documents: equal segment ids attend."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from attnjax.core.masks.arrays import lookup
from attnjax.core.masks.base import FAR, Extent, Mask, checked_ints, numpy_of, same_rank, verdict
from attnjax.core.masks.functions import MaskFunction, MaskOperand, read_at


@register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class Document(Mask):
    """q_ids[b, q] == k_ids[b, k] >= 0, for ids (T,), (S,) or (B, T), (B, S)."""

    q_ids: Any
    k_ids: Any

    def resolve(self, T, S):
        for name, ids, size in (("q_ids", self.q_ids, T), ("k_ids", self.k_ids, S)):
            if ids.shape[-1] != size:
                raise ValueError(f"document: {name} has shape {ids.shape}, expected (.., {size})")
        return self

    @property
    def extents(self):
        named = ("q_ids", self.q_ids), ("k_ids", self.k_ids)
        return tuple(Extent(f"document: {n} of shape {x.shape}", x.shape[-1]) for n, x in named)

    def allowed(self, q_pos, k_pos):
        xp = numpy_of(self, q_pos, k_pos)
        q, k = same_rank(lookup(self.q_ids, q_pos, xp), lookup(self.k_ids, k_pos, xp))
        return (q == k) & (q >= 0)

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        xp = numpy_of(self, q_lo, q_hi, k_lo, k_hi)
        q_ids, k_ids = _labels(self.q_ids, self.k_ids)
        q = _bounds(q_ids, q_lo, q_hi, xp)
        k = _bounds(k_ids, k_lo, k_hi, xp)
        overlap = (q.least <= k.most) & (k.least <= q.most)
        some = (q.least <= q.most) & (k.least <= k.most) & overlap
        return verdict(some, q.alike & k.alike & (q.first == k.first) & (q.first >= 0))

    def as_function(self, q_positions, k_positions, heads):
        q = read_at(jnp.asarray(self.q_ids, jnp.int32), q_positions, heads)
        k = read_at(jnp.asarray(self.k_ids, jnp.int32), k_positions, heads)
        operands = MaskOperand(q[..., None]), MaskOperand(k[..., None, :])
        return MaskFunction(_same_document, operands)


def _same_document(q_position: Any, k_position: Any, q_id: Any, k_id: Any) -> Any:
    return (q_id == k_id) & (q_id >= 0)


def document(q_ids: Any, k_ids: Any = None) -> Mask:
    """Equal ids attend; ids (T,) or (B, T) ints, `k_ids` (S,) or (B, S), by default the same.

    A negative id is padding: it attends to nothing and nothing attends to it.  Tiles are exact if
    every id is contiguous and keys have them in the queries' order (sorted ids, say), with padding
    at either end; for scattered ids they are conservative.
    """
    ranks = {1: "(T,)", 2: "(B, T)"}
    q_ids = checked_ints("document: q_ids", q_ids, ranks)
    return Document(
        q_ids, q_ids if k_ids is None else checked_ints("document: k_ids", k_ids, ranks)
    )


def document_ids(cu_seqlens: Any, length: int) -> Any:
    """The ids (length,) of documents packed behind each other, from the offsets (n + 1,) of flash
    attention: document i is tokens cu_seqlens[i] to cu_seqlens[i + 1] - 1; padding after the last
    is -1.  For `document`, and for the `documents` of recurrent ops.
    """
    ends = checked_ints("document_ids: cu_seqlens", cu_seqlens, {1: "(n + 1,)"})
    if isinstance(ends, np.ndarray) and (np.diff(ends, prepend=0) < 0).any():
        raise ValueError(f"document_ids: cu_seqlens is {ends}, expected offsets that rise from 0")
    if isinstance(ends, np.ndarray) and (not ends.size or ends[0] != 0 or ends[-1] > length):
        raise ValueError(f"document_ids: cu_seqlens is {ends}, expected 0 .. at most {length}")
    xp = numpy_of(ends)
    at = xp.searchsorted(ends, xp.arange(length), side="right") - 1
    return xp.where(at < ends.shape[0] - 1, at, -1).astype(np.int32)


# ---------------------------------------------------------------- segment ids over intervals


class _Bounds(NamedTuple):
    """Of the labels at an interval of positions; least > most where all are -1."""

    first: Any  # the label of the first position
    least: Any  # of all labels but -1: no label is below this,
    most: Any  # and none is above this
    alike: Any  # whether all labels are equal


def _find(ordered: Any, x: Any, xp: Any) -> tuple[Any, Any]:
    """Where each x stands first in a sorted array, and whether it does."""
    index = xp.minimum(xp.searchsorted(ordered, x), ordered.shape[0] - 1)
    return index, ordered[index] == x


def _labels(q_ids: Any, k_ids: Any) -> tuple[Any, Any]:
    """Renames ids that both sides have to the index of their first query, all others to -1.

    Contiguous ids become sorted ones, and every id between two others is found on both sides; so
    two intervals share an id iff their ranges of ids overlap.
    """
    xp = numpy_of(q_ids, k_ids)

    def label_row(q_ids, k_ids):
        order = xp.argsort(q_ids, stable=True)

        def rename(ids):
            index, is_there = _find(q_ids[order], ids, xp)
            return xp.where(is_there & (ids >= 0), order[index], -1).astype(np.int32)

        q, k = rename(q_ids), rename(k_ids)
        _, on_both_sides = _find(xp.sort(k), q, xp)
        return xp.where(on_both_sides, q, np.int32(-1)), k

    return xp.vectorize(label_row, signature="(t),(s)->(t),(s)")(q_ids, k_ids)


def _bounds(labels: Any, lo: Any, hi: Any, xp: Any) -> _Bounds:
    """Of positions lo .. hi.

    The bounds are the least label from lo on and the most up to hi, which are those of the interval
    if labels are sorted, and wider ones if not.
    """
    own = numpy_of(labels)
    mirrored = own.where(labels < 0, -FAR, -labels)[..., ::-1]
    least_from_here = -_running_max(mirrored)[..., ::-1]
    most_up_to_here = _running_max(labels)
    before_first = [(0, 0)] * (labels.ndim - 1) + [(1, 0)]
    change = own.pad(labels[..., 1:] != labels[..., :-1], before_first)
    run = own.cumsum(change, axis=-1, dtype=np.int32)  # neighbors with one label share a number
    return _Bounds(
        first=lookup(labels, lo, xp),
        least=lookup(least_from_here, lo, xp),
        most=lookup(most_up_to_here, hi, xp),
        alike=lookup(run, lo, xp) == lookup(run, hi, xp),
    )


def _running_max(x: Any) -> Any:
    host = numpy_of(x) is np
    return np.maximum.accumulate(x, axis=-1) if host else jax.lax.cummax(x, axis=x.ndim - 1)
