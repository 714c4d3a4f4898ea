"""Masks: which key positions a query position may attend to.

A mask is a value that answers two questions.  For positions, `allowed(q_pos, k_pos)`: elementwise,
True where attention may flow.  For rectangles, `classify`: given inclusive intervals of query and
of key positions, is the mask inside the rectangle

    EMPTY    nothing is allowed: the tile is skipped;
    PARTIAL  some pairs may be: the tile is computed and masked;
    FULL     everything is allowed: the tile is computed as it is.

The three values are numbers, [some pair is allowed] + [every pair is allowed] = 0, 1 or 2, so that
Kleene's logic is arithmetic: `a & b` is the minimum, `a | b` the maximum, `~a` is 2 - a.  A list of
tiles thus costs O(tiles); no T x S array is formed, at a million tokens neither.

`classify` is sound: never EMPTY where a pair is allowed, never FULL where one is not.  It is exact
for every mask of this file but a combination of several (and `document` with scattered ids); exact
too for `~`, for `&` of `causal` with `window`, `sinks` or `prefix`, and FULL for any `&`.

Masks are pytrees.  Integers are static; arrays are leaves, kept as NumPy when they are concrete, so
that tiles are computed on the host while a program is traced, or traced themselves.  A mask that
varies by example or head has shape (B|1, N|1, ., .), any other (., .).  Positions lie in 0 .. T-1
and 0 .. S-1, or are those that `attend` was given: `chunk` tells which arrays they then read.
"""

import functools
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import register_dataclass

from attnjax.core.masks.functions import MaskFunction, OfPositions, join
from attnjax.core.numerics import known
from attnjax.core.values import Value

EMPTY, PARTIAL, FULL = 0, 1, 2
FAR = 2**31 - 1  # beyond every distance between two positions


class Mask(Value):
    """Base of all masks; combine them with `&`, `|` and `~`."""

    def allowed(self, q_pos: Any, k_pos: Any) -> Any:
        """Bool, broadcastable to (bq, bk) or (B|1, N|1, bq, bk), for (bq, 1) and (1, bk) ints."""
        raise NotImplementedError

    def classify(self, q_lo: Any, q_hi: Any, k_lo: Any, k_hi: Any) -> Any:
        """EMPTY, PARTIAL or FULL (int8) of rectangles, given (nq, 1) and (1, nk) inclusive ends.

        Broadcasts to (nq, nk), or to (B|1, N|1, nq, nk); NumPy when mask and arguments are.
        """
        raise NotImplementedError

    def as_function(self, q_positions: Any, k_positions: Any, heads: int) -> MaskFunction | str:
        """An elementwise function with operands that equals `allowed`, or why there is none.

        For kernels, which cannot look up an array by position.  q_positions (B|1, X|1, T) and
        k_positions (B|1, X|1, S) are those of the tokens, for X of `heads` query heads.  Masks
        without arrays need not define it.
        """
        if jax.tree_util.tree_leaves(self):
            return "its arrays are not operands of a function: it does not define as_function"
        return MaskFunction(OfPositions(self))

    def resolve(self, T: int, S: int) -> "Mask":
        """The mask for T queries and S keys; ValueError if its arrays do not fit them."""
        return self

    def at_positions(self, T: int, S: int, q_positions: Any, k_positions: Any) -> "Mask":
        """The mask for T queries and S keys at positions that are given, at least on one side."""
        return self.resolve(T, S) if self.extents == (None, None) else self

    @property
    def extents(self) -> "tuple[Extent | None, Extent | None]":
        """For how many queries, and keys, its arrays are; None: it has none of these."""
        return None, None

    @property
    def by_row(self) -> bool:
        """Whether it answers for places in the call, 0 .. T-1 and 0 .. S-1, whatever positions."""
        return False

    def dense(self, T: int, S: int) -> Any:
        """The whole mask, bool of shape (T, S) or (B|1, N|1, T, S)."""
        q, k = (np.arange(checked_int(n, x, 1), dtype=np.int32) for n, x in (("T", T), ("S", S)))
        return fill(self.resolve(T, S).allowed(q[:, None], k[None]), T, S)

    def tiles(
        self, T: int, S: int, block_q: int, block_k: int, q_positions=None, k_positions=None
    ) -> Any:
        """EMPTY, PARTIAL or FULL (int8) of each tile, (ceil(T/block_q), ceil(S/block_k)).

        One value for all examples and heads: EMPTY or FULL only where all agree.  Given positions
        (T,), (S,), in any order and possibly traced, a block is judged by its smallest and largest:
        sound, and exact where they are contiguous.
        """
        return tile_kinds(self.resolve(T, S), T, S, block_q, block_k, q_positions, k_positions)

    def __and__(self, other: "Mask") -> "Mask":
        if isinstance(other, Everything):
            return self
        return And(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: "Mask") -> "Mask":
        if isinstance(other, Everything):
            return other
        return Or(self, other) if isinstance(other, Mask) else NotImplemented

    def __invert__(self) -> "Mask":
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError(
            f"a mask is neither true nor false, {self!r} here: join masks by &, | and ~, not by "
            "and, or and not; no mask is masks.everything, to be compared by `is` or `==`"
        )

    def __repr__(self) -> str:
        values = [_show(getattr(self, f.name)) for f in fields(self)]  # pyright: ignore
        return f"{re.sub('(?<!^)(?=[A-Z])', '_', type(self).__name__).lower()}({', '.join(values)})"


class Extent(NamedTuple):
    """For how many queries or keys an array of a mask is.

    name    of the array, for errors
    size    how many
    rides   whether a call's own array may stand in its place, one element for each query or key
    exact   whether there may be no more than the call has
    """

    name: str
    size: int
    rides: bool = True
    exact: bool = True


def static_field() -> Any:
    return field(metadata={"static": True})


@functools.partial(register_dataclass, data_fields=[], meta_fields=[])
@dataclass(frozen=True, repr=False)
class Everything(Mask):
    """Every query may attend to every key; what a call without a mask has.

    It answers in NumPy whatever it is asked, so it costs nothing when positions are traced.
    """

    def allowed(self, q_pos, k_pos):
        return constant(True, bool, q_pos, k_pos)

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        return constant(FULL, np.int8, q_lo, k_lo)

    def __and__(self, other: Mask) -> Mask:
        return other if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: Mask) -> Mask:
        return self if isinstance(other, Mask) else NotImplemented

    def __repr__(self):
        return "everything"


everything = Everything()
"""All pairs: the identity of `&`."""


# ---------------------------------------------------------------- combinations


@dataclass(frozen=True, repr=False)
class Pair(Mask):
    """Two masks under one operator: `_logic` joins truths, `_kleene` names what joins verdicts."""

    a: Mask
    b: Mask
    _logic: ClassVar[Any]
    _kleene: ClassVar[str]

    def resolve(self, T, S):
        return type(self)(self.a.resolve(T, S), self.b.resolve(T, S))

    def allowed(self, q_pos, k_pos):
        return self._logic(*same_rank(*(m.allowed(q_pos, k_pos) for m in (self.a, self.b))))

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        a, b = same_rank(*(m.classify(q_lo, q_hi, k_lo, k_hi) for m in (self.a, self.b)))
        return getattr(numpy_of(a, b), self._kleene)(a, b)

    def as_function(self, q_positions, k_positions, heads):
        parts = [m.as_function(q_positions, k_positions, heads) for m in (self.a, self.b)]
        return join(type(self)._logic, parts)


@functools.partial(register_dataclass, data_fields=["a", "b"], meta_fields=[])
class And(Pair):
    _logic, _kleene = operator.and_, "minimum"

    def __repr__(self):
        return " & ".join(f"({m})" if isinstance(m, Or) else repr(m) for m in (self.a, self.b))


@functools.partial(register_dataclass, data_fields=["a", "b"], meta_fields=[])
class Or(Pair):
    _logic, _kleene = operator.or_, "maximum"

    def __repr__(self):
        return f"{self.a} | {self.b}"


@register_dataclass
@dataclass(frozen=True, repr=False)
class Not(Mask):
    a: Mask

    def resolve(self, T, S):
        return Not(self.a.resolve(T, S))

    def allowed(self, q_pos, k_pos):
        return ~self.a.allowed(q_pos, k_pos)

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        return FULL - self.a.classify(q_lo, q_hi, k_lo, k_hi)

    def as_function(self, q_positions, k_positions, heads):
        return join(jnp.logical_not, [self.a.as_function(q_positions, k_positions, heads)])

    def __repr__(self):
        return f"~({self.a})" if isinstance(self.a, Pair) else f"~{self.a}"


# ---------------------------------------------------------------- arithmetic on rectangles


def tile_kinds(mask: Mask, T: int, S: int, block_q: int, block_k: int, q_pos: Any, k_pos: Any):
    """`Mask.tiles` of a resolved mask, which may be that of longer sequences."""
    tiles = tile_kinds_of_each(mask, T, S, block_q, block_k, q_pos, k_pos)
    low, high = tiles.min((0, 1)), tiles.max((0, 1))
    return numpy_of(tiles).where(low == high, low, low.dtype.type(PARTIAL))


def tile_kinds_of_each(mask: Mask, T: int, S: int, block_q: int, block_k: int, q_pos, k_pos):
    """The same for each example and head, (B|1, N|1, rows, columns)."""
    T, S = (checked_int(name, n, 1) if known(n) else n for name, n in (("T", T), ("S", S)))
    q = [x[:, None] for x in _intervals("q_positions", q_pos, T, block_q)]
    k = [x[None] for x in _intervals("k_positions", k_pos, S, block_k)]
    return fill(rank4(mask.classify(*q, *k)), q[0].shape[0], k[0].shape[1])


def numpy_of(*values: Any) -> Any:
    """jax.numpy if any leaf is a JAX array, traced or not, else NumPy."""
    leaves = jax.tree_util.tree_leaves(values)
    return jnp if any(isinstance(x, jax.Array) for x in leaves) else np


def constant(value: Any, dtype: Any, *like: Any) -> Any:
    """One value in the shape to which the others broadcast; NumPy if that is known."""
    shape = jnp.broadcast_shapes(*map(np.shape, like))
    return (np if known(*shape) else jnp).full(shape, value, dtype)


def verdict(some: Any, every: Any) -> Any:
    """EMPTY, PARTIAL, FULL as numbers; `every` may hold only where `some` does."""
    return some.astype(np.int8) + every.astype(np.int8)


def rank4(x: Any) -> Any:
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def same_rank(a: Any, b: Any) -> tuple[Any, Any]:
    return (a, b) if a.ndim == b.ndim else (rank4(a), rank4(b))


def fill(x: Any, rows: int, columns: int) -> Any:
    """Broadcasts the last two dimensions; writable where it is NumPy."""
    shape = x.shape[:-2] + (rows, columns)
    return np.array(np.broadcast_to(x, shape)) if numpy_of(x) is np else jnp.broadcast_to(x, shape)


def _intervals(name: str, positions: Any, length: int, block: int) -> tuple[Any, Any]:
    """Smallest and largest position of each block."""
    checked_int("block_q" if name[0] == "q" else "block_k", block, 1)
    blocks = -(-length // block)
    if positions is None:
        xp = np if known(blocks) else jnp
        start = xp.arange(blocks, dtype=np.int32) * np.int32(block)
        return start, xp.minimum(start + (block - 1), length - 1)
    positions = checked_ints(name, positions, {1: f"({length},)"})
    if positions.shape != (length,):
        raise ValueError(f"{name}: got shape {positions.shape}, expected ({length},)")
    padded = numpy_of(positions).pad(positions, (0, blocks * block - length), mode="edge")
    return padded.reshape(blocks, block).min(1), padded.reshape(blocks, block).max(1)


# ---------------------------------------------------------------- checks and printing


def checked_int(name: str, value: Any, low: int, other: str = "") -> int:
    expected = f"expected an integer in {low} .. 2**31 - 1{other}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}, {expected}")
    if not low <= value <= FAR:
        raise ValueError(f"{name} is {value}, {expected}")
    return int(value)


def checked_array(name: str, value: Any, kind: Any, ranks: dict[int, str]) -> Any:
    value = value if isinstance(value, Tracer) else np.asarray(value)
    if value.ndim not in ranks:
        raise ValueError(f"{name} has shape {value.shape}, expected {' or '.join(ranks.values())}")
    if not jnp.issubdtype(value.dtype, kind):
        raise TypeError(f"{name} has dtype {value.dtype}, expected {kind.__name__}")
    return value


def checked_ints(name: str, value: Any, ranks: dict[int, str]) -> Any:
    value = checked_array(name, value, np.integer, ranks)
    if isinstance(value, np.ndarray) and (value.astype(np.int32) != value).any():
        raise ValueError(f"{name} reaches beyond 32 bits, expected values that fit int32")
    return value.astype(np.int32)


def _show(value: Any) -> str:
    shape = ",".join(map(str, getattr(value, "shape", ())))
    return f"{value.dtype}[{shape}]" if hasattr(value, "dtype") else repr(value)


def every_one(conditions: Iterable[Any]) -> Any:
    """`&` of one or more arrays."""
    return functools.reduce(operator.and_, conditions)
