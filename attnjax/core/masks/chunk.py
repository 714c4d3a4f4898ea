"""Masks of one call: of so many examples and heads, at the positions that it gives.

Without positions a call has the whole text, and arrays of masks are as long as it is.  With them it
has some of the tokens, in any order, and each side of an array is one of two:

    that of the text     longer than the call, read at the positions, which lie inside it
    the call's own       one element for each of the T queries, or S keys, in their order

An array just as long as the call is the call's own, unless the positions are 0 .. T-1, each once:
then the queries are the whole text, in an order of their own, and the array is read at positions.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import register_dataclass

from attnjax.core.masks.arrays import BoolArray
from attnjax.core.masks.base import Everything, Extent, Mask, Not, Pair, numpy_of


class Side(NamedTuple):
    """The queries, or the keys, of a call: `letter` T or S, how many, and their positions or None.

    positions (length,); (B,length), those of each example; or (B|1,X|1,length) where the X heads
    see tokens in an order of their own: arrays of masks are then those of the text.
    """

    letter: str
    length: int
    positions: Any

    @property
    def name(self) -> str:
        return "q_positions" if self.letter == "T" else "k_positions"


def for_call(mask: Mask, B: int, N: int, q: Side, k: Side) -> Mask:
    """The mask of a call; ValueError for arrays that do not fit its B, N, T, S and positions.

    If an array is the call's own, the result answers for places in the call (`Mask.by_row`), else
    for positions.
    """
    for leaf in _leaves(mask):
        _check_lead(leaf, B, N)
    if q.positions is None and k.positions is None:
        return mask.resolve(q.length, k.length)
    rides = False

    def place(leaf: Mask) -> Mask:
        nonlocal rides
        q_extent, k_extent = leaf.extents
        q_at, q_rides = _coordinates(q_extent, q)
        k_at, k_rides = _coordinates(k_extent, k)
        rides |= q_rides | k_rides
        leaf = leaf.at_positions(q.length, k.length, q.positions, k.positions)
        return Placed(leaf, q_at, k_at, q_rides or k_rides)

    placed = _mapped(mask, place)
    return ByRow(placed) if rides else _mapped(placed, lambda leaf: getattr(leaf, "mask", leaf))


def of_shards(mask: Mask, T: int, S: int, q_positions: Any, k_positions: Any) -> Mask:
    """The mask of T queries and S keys of which a device has some, whose positions may be told.

    Arrays are those of the whole text.
    """
    if q_positions is None and k_positions is None:
        return mask.resolve(T, S)

    def resolve(leaf: Mask) -> Mask:
        if leaf.extents == (None, None):
            return leaf.at_positions(T, S, q_positions, k_positions)
        return leaf.resolve(T, S)

    return _mapped(mask, resolve)


# ------------------------------------------------------------------------- masks by place


@functools.partial(register_dataclass, data_fields=["mask", "q_at", "k_at"], meta_fields=["rides"])
@dataclass(frozen=True, repr=False, eq=False)
class Placed(Mask):
    """A mask for the places of a call: query i is its q_at[i], key j its k_at[j].

    None: i and j themselves.  `rides`: it reads an array of the call's own.
    """

    mask: Mask
    q_at: Any
    k_at: Any
    rides: bool

    def allowed(self, q_pos, k_pos):
        return self.mask.allowed(_look_up(self.q_at, q_pos), _look_up(self.k_at, k_pos))

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        return self.mask.classify(
            *_extremes(self.q_at, q_lo, q_hi), *_extremes(self.k_at, k_lo, k_hi)
        )

    def as_function(self, q_positions, k_positions, heads):
        if not self.rides:
            return self.mask.as_function(q_positions, k_positions, heads)
        lift = lambda at, given: given if at is None else jnp.asarray(at, jnp.int32)[None, None]
        q_at, k_at = lift(self.q_at, q_positions), lift(self.k_at, k_positions)
        if isinstance(self.mask, BoolArray):
            return self.mask.of_pairs(q_at[0, 0], k_at[0, 0])
        return self.mask.as_function(q_at, k_at, heads)

    def __repr__(self):
        return repr(self.mask)


@register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class ByRow(Mask):
    """A mask that answers for places in the call instead of positions; see `Mask.by_row`."""

    mask: Mask

    @property
    def by_row(self):
        return True

    def allowed(self, q_pos, k_pos):
        return self.mask.allowed(q_pos, k_pos)

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        return self.mask.classify(q_lo, q_hi, k_lo, k_hi)

    def as_function(self, q_positions, k_positions, heads):
        return self.mask.as_function(q_positions, k_positions, heads)

    def __repr__(self):
        return repr(self.mask)


def at_example(mask: Mask, b: Any) -> Mask:
    """The mask of a call of example b alone, where examples have positions of their own."""
    if isinstance(mask, ByRow):
        return ByRow(at_example(mask.mask, b))
    own = lambda at: at if at is None or at.ndim == 1 else jnp.asarray(at)[b]

    def alone(leaf: Mask) -> Mask:
        if not isinstance(leaf, Placed):
            return leaf
        return replace(leaf, q_at=own(leaf.q_at), k_at=own(leaf.k_at))

    return _mapped(mask, alone)


def _look_up(at: Any, places: Any) -> Any:
    return places if at is None else numpy_of(at, places).take(at, places, mode="clip")


def _extremes(at: Any, lo: Any, hi: Any) -> tuple[Any, Any]:
    """The smallest and the largest at[i] for lo <= i <= hi.

    From windows of 1, 2, 4, ... places: two of them, which may overlap, cover any interval.
    """
    if at is None:
        return lo, hi
    xp = numpy_of(at, lo, hi)
    size = hi - lo + 1
    least = most = xp.asarray(at)
    low, high = (xp.take(x, lo, mode="clip") for x in (least, most))
    width = 1
    while 2 * width <= len(at):
        least = xp.minimum(least[:-width], least[width:])
        most = xp.maximum(most[:-width], most[width:])
        width *= 2
        ends = lo, hi - (width - 1)
        here = size >= width
        of = lambda x, ends=ends: [xp.take(x, end, mode="clip") for end in ends]
        low = xp.where(here, xp.minimum(*of(least)), low)
        high = xp.where(here, xp.maximum(*of(most)), high)
    return low, high


# ------------------------------------------------------------------------------ which is which


def _coordinates(extent: Extent | None, side: Side) -> tuple[Any, bool]:
    """What a mask is to be asked for each place of the side, and whether its array rides along."""
    at, length = side.positions, side.length
    if at is not None and not isinstance(at, Tracer):
        at = np.asarray(at).astype(np.int32)
    if extent is None:
        return at, False
    size = extent.size
    if at is None:
        if size != length and (extent.exact or size < length):
            told = "" if extent.exact else "at least "
            raise ValueError(f"{extent.name}, expected {told}{side.letter} = {length} of these")
        return None, False
    if extent.rides and at.ndim < 3 and size == length:
        return _own_or_permuted(at)
    if extent.rides and size < length:
        raise ValueError(_misfit(extent, side, ""))
    if not isinstance(at, Tracer) and not (0 <= at.min() and at.max() < size):
        raise ValueError(_misfit(extent, side, f", which are {at.min()} .. {at.max()}"))
    return at, False


def _own_or_permuted(at: Any) -> tuple[Any, bool]:
    """Positions if they are 0 .. length-1 in some order, else the places themselves."""
    own = np.arange(at.shape[-1], dtype=np.int32)
    if isinstance(at, Tracer):
        at = at.astype(jnp.int32)
        whole = (jnp.sort(at, axis=-1) == own).all(-1, keepdims=True)
        return jnp.where(whole, at, own), True
    whole = (np.sort(at, axis=-1) == own).all(-1, keepdims=True)
    return (at, False) if whole.all() else (np.where(whole, at, own), True)


def _misfit(extent: Extent, side: Side, positions: str) -> str:
    own = f"{side.letter} = {side.length} of its own, or " if extent.rides else ""
    return (
        f"{extent.name} is for {extent.size} positions; expected {own}those of a text that holds "
        f"all of {side.name}{positions}"
    )


# --------------------------------------------------------------------------- masks made of masks


def _leaves(mask: Mask) -> Iterator[Mask]:
    if isinstance(mask, Pair):
        yield from _leaves(mask.a)
        yield from _leaves(mask.b)
    elif isinstance(mask, Not):
        yield from _leaves(mask.a)
    else:
        yield mask


def _mapped(mask: Mask, fn: Callable[[Mask], Mask]) -> Mask:
    """The same combination of fn of each of its parts."""
    if isinstance(mask, Pair):
        return type(mask)(_mapped(mask.a, fn), _mapped(mask.b, fn))
    return Not(_mapped(mask.a, fn)) if isinstance(mask, Not) else fn(mask)


def _check_lead(leaf: Mask, B: int, N: int) -> None:
    """Raises ValueError for a mask of other than so many examples and heads, or one for all."""
    arrays = jax.tree.leaves(leaf)
    if isinstance(leaf, Everything) or not arrays:
        return
    first = np.zeros((1, 1), np.int32)
    ours = type(leaf).__module__.startswith(__package__ or "attnjax")  # answers in NumPy
    if not ours or any(isinstance(x, jax.Array) for x in arrays):
        shape = jax.eval_shape(lambda m: jnp.asarray(m.allowed(first, first)), leaf).shape
    else:
        shape = np.shape(leaf.allowed(first, first))
    b, n = ((1, 1) + shape)[-4:-2]
    if b not in (1, B) or n not in (1, N):
        raise ValueError(
            f"attend: mask {leaf!r} is of {b} examples and {n} heads, expected B = {B} or one "
            f"for all, and N = {N} or one for all"
        )
