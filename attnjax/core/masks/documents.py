"""Packed documents: equal segment ids attend."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from attnjax.core.masks.arrays import lookup
from attnjax.core.masks.base import FAR, Mask, checked_ints, numpy_of, same_rank, verdict
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

    def allowed(self, q_pos, k_pos):
        xp = numpy_of(self, q_pos, k_pos)
        q, k = same_rank(lookup(self.q_ids, q_pos, xp), lookup(self.k_ids, k_pos, xp))
        return (q == k) & (q >= 0)

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        xp = numpy_of(self, q_lo, q_hi, k_lo, k_hi)
        q_ids, k_ids = _labels(self.q_ids, self.k_ids)
        q, q_least, q_most, q_alike = _spans(q_ids, q_lo, q_hi, xp)
        k, k_least, k_most, k_alike = _spans(k_ids, k_lo, k_hi, xp)
        some = (q_least <= q_most) & (k_least <= k_most) & (q_least <= k_most) & (k_least <= q_most)
        return verdict(some, q_alike & k_alike & (q == k) & (q >= 0))

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


# ---------------------------------------------------------------- segment ids over intervals


def _find(ordered: Any, x: Any, xp: Any) -> tuple[Any, Any]:
    """Where each x stands first in a sorted array, and whether it does."""
    place = xp.minimum(xp.searchsorted(ordered, x), ordered.shape[0] - 1)
    return place, ordered[place] == x


def _labels(q_ids: Any, k_ids: Any) -> tuple[Any, Any]:
    """Renames ids that both sides have to the place of their first query, all others to -1.

    Contiguous ids become sorted ones, and every id between two others is found on both sides; so
    two intervals share an id iff their ranges of ids overlap.
    """
    xp = numpy_of(q_ids, k_ids)

    def row(q_ids, k_ids):
        order = xp.argsort(q_ids, stable=True)

        def rename(ids):
            place, found = _find(q_ids[order], ids, xp)
            return xp.where(found & (ids >= 0), order[place], -1).astype(np.int32)

        q, k = rename(q_ids), rename(k_ids)
        return xp.where(_find(xp.sort(k), q, xp)[1], q, np.int32(-1)), k

    return xp.vectorize(row, signature="(t),(s)->(t),(s)")(q_ids, k_ids)


def _spans(labels: Any, lo: Any, hi: Any, xp: Any) -> tuple[Any, Any, Any, Any]:
    """Of positions lo .. hi: label of the first, bounds on all but -1, and whether all are alike.

    The bounds are the least label from lo on and the most up to hi, which are those of the interval
    if labels are sorted, and wider ones if not.
    """
    at, own = functools.partial(lookup, xp=xp), numpy_of(labels)
    mirrored = own.where(labels < 0, -FAR, -labels)[..., ::-1]
    least, most = -_running_max(mirrored)[..., ::-1], _running_max(labels)
    change = own.pad(labels[..., 1:] != labels[..., :-1], [(0, 0)] * (labels.ndim - 1) + [(1, 0)])
    run = own.cumsum(change, axis=-1, dtype=np.int32)
    return at(labels, lo), at(least, lo), at(most, hi), at(run, lo) == at(run, hi)


def _running_max(x: Any) -> Any:
    host = numpy_of(x) is np
    return np.maximum.accumulate(x, axis=-1) if host else jax.lax.cummax(x, axis=x.ndim - 1)
