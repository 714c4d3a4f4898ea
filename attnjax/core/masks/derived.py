"""Masks made from another mask: as a head sees it, over runs of tokens, with padding behind."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core.masks.base import Everything, Mask, everything, numpy_of
from attnjax.core.masks.positions import prefix
from attnjax.typing import Array


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["mask", "b", "n"], meta_fields=["heads"]
)
@dataclass(frozen=True, repr=False)
class HeadSlice(Mask):
    """A mask as example b (None: all) and heads n, ..., n + heads - 1 see it."""

    mask: Mask
    b: Array | int | None
    n: Array | int
    heads: int

    @property
    def by_row(self):
        return self.mask.by_row

    def _part(self, x: Array) -> Array:
        x = jnp.asarray(x)
        if x.ndim == 4 and x.shape[0] > 1 and self.b is not None:
            x = lax.dynamic_slice_in_dim(x, self.b, 1, 0)
        if x.ndim == 4 and x.shape[1] > 1:
            x = lax.dynamic_slice_in_dim(x, self.n, self.heads, 1)
        return x

    def allowed(self, q_pos: Any, k_pos: Any) -> Any:
        return self._part(self.mask.allowed(q_pos, k_pos))

    def classify(self, q_lo: Any, q_hi: Any, k_lo: Any, k_hi: Any) -> Any:
        return self._part(self.mask.classify(q_lo, q_hi, k_lo, k_hi))


def of_heads(mask: Mask, b: Array | int | None, n: Array | int, heads: int) -> Mask:
    """The mask as example b (None: all) and heads n, ..., n + heads - 1 see it."""
    return mask if isinstance(mask, Everything) else HeadSlice(mask, b, n, heads)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["mask"], meta_fields=["length", "stride"]
)
@dataclass(frozen=True, repr=False, eq=False)
class OfRuns(Mask):
    """A mask of tokens as keys see it that stand for runs of them; made by `mask_of_runs`."""

    mask: Mask
    length: int
    stride: int

    def allowed(self, q_pos: Any, k_pos: Any) -> Any:
        first = k_pos * self.stride
        last = first + self.length - 1
        return self.mask.allowed(q_pos, first) & self.mask.allowed(q_pos, last)

    def classify(self, q_lo: Any, q_hi: Any, k_lo: Any, k_hi: Any) -> Any:
        at = lambda token: self.mask.classify(
            q_lo, q_hi, k_lo * self.stride + token, k_hi * self.stride + token
        )
        first, last = at(0), at(self.length - 1)
        return numpy_of(first, last).minimum(first, last)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mask"], meta_fields=["T", "S"])
@dataclass(frozen=True, repr=False)
class Inside(Mask):
    """A mask of T queries and S keys, of tokens that go on with padding behind them.

    Keys from S on are seen by nobody; what queries from T on see does not matter.  None is no end.
    """

    mask: Mask
    T: int | None
    S: int | None

    def _real(self, q: Any, k: Any) -> tuple[Any, Any]:
        """The mask itself answers for real positions only."""
        clip = lambda x, n: x if n is None else numpy_of(x).minimum(x, n - 1)
        return clip(q, self.T), clip(k, self.S)

    @property
    def _ends(self) -> Mask:
        return everything if self.S is None else prefix(self.S)

    def allowed(self, q_pos: Any, k_pos: Any) -> Any:
        real = self._ends.allowed(q_pos, k_pos)
        return self.mask.allowed(*self._real(q_pos, k_pos)) & real

    def classify(self, q_lo: Any, q_hi: Any, k_lo: Any, k_hi: Any) -> Any:
        inside = self._ends.classify(q_lo, q_hi, k_lo, k_hi)
        (q_lo, k_lo), (q_hi, k_hi) = self._real(q_lo, k_lo), self._real(q_hi, k_hi)
        kind = self.mask.classify(q_lo, q_hi, k_lo, k_hi)
        return numpy_of(kind, inside).minimum(kind, inside)
