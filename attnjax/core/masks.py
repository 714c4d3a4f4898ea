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
and 0 .. S-1.
"""

import functools
import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import register_dataclass

from attnjax.core import neighborhood as grid

EMPTY, PARTIAL, FULL = 0, 1, 2
_FAR = 2**31 - 1  # beyond every distance between two positions


class Mask:
    """Base of all masks; combine them with `&`, `|` and `~`."""

    def allowed(self, q_pos: Any, k_pos: Any) -> Any:
        """Bool, broadcastable to (bq, bk) or (B|1, N|1, bq, bk), for (bq, 1) and (1, bk) ints."""
        raise NotImplementedError

    def classify(self, q_lo: Any, q_hi: Any, k_lo: Any, k_hi: Any) -> Any:
        """EMPTY, PARTIAL or FULL (int8) of rectangles, given (nq, 1) and (1, nk) inclusive ends.

        Broadcasts to (nq, nk), or to (B|1, N|1, nq, nk); NumPy when mask and arguments are.
        """
        raise NotImplementedError

    def resolve(self, T: int, S: int) -> "Mask":
        """The mask for T queries and S keys; ValueError if its arrays do not fit them."""
        return self

    def dense(self, T: int, S: int) -> Any:
        """The whole mask, bool of shape (T, S) or (B|1, N|1, T, S)."""
        q, k = (np.arange(_integer(n, x, 1), dtype=np.int32) for n, x in (("T", T), ("S", S)))
        return _fill(self.resolve(T, S).allowed(q[:, None], k[None]), T, S)

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
        return And(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other) if isinstance(other, Mask) else NotImplemented

    def __invert__(self) -> "Mask":
        return Not(self)

    def __repr__(self) -> str:
        values = [_show(getattr(self, f.name)) for f in fields(self)]  # pyright: ignore
        return f"{re.sub('(?<!^)(?=[A-Z])', '_', type(self).__name__).lower()}({', '.join(values)})"


def _static() -> Any:
    return field(metadata={"static": True})


# ---------------------------------------------------------------- masks of positions alone


@register_dataclass
@dataclass(frozen=True, repr=False)
class Window(Mask):
    """q - left <= k <= q + right; None is no limit on that side, `right` may be negative."""

    left: int | None = _static()
    right: int | None = _static()

    def allowed(self, q_pos, k_pos):
        return self._within(q_pos - k_pos, q_pos - k_pos)

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        near, far = q_lo - k_hi, q_hi - k_lo  # q - k takes every value from near to far
        return _verdict(self._within(far, near), self._within(near, far))

    def _within(self, back, ahead):
        left = _FAR if self.left is None else self.left
        right = _FAR if self.right is None else self.right
        return (ahead <= left) & (back >= -right)

    def __repr__(self):
        return "causal" if (self.left, self.right) == (None, 0) else super().__repr__()


@register_dataclass
@dataclass(frozen=True, repr=False)
class CausalToEnd(Mask):
    """k <= q + S - T; has to be resolved to a window before it can answer."""

    def resolve(self, T, S):
        return Window(None, S - T)

    def allowed(self, q_pos, k_pos):
        raise ValueError("causal_to_end: T and S are not known here, call resolve(T, S) first")

    def __repr__(self):
        return "causal_to_end"


@register_dataclass
@dataclass(frozen=True, repr=False)
class Prefix(Mask):
    """k < n."""

    n: int = _static()

    def allowed(self, q_pos, k_pos):
        return k_pos < self.n

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        return _verdict(k_lo < self.n, k_hi < self.n)


@functools.partial(register_dataclass, data_fields=[], meta_fields=["n"])
class Sinks(Prefix):
    """k < n, under the name it has beside a window."""


@register_dataclass
@dataclass(frozen=True, repr=False)
class Dilated(Mask):
    """|q - k| <= window * dilation and q - k is a multiple of dilation."""

    window: int = _static()
    dilation: int = _static()

    def allowed(self, q_pos, k_pos):
        d = q_pos - k_pos
        return (abs(d) <= self.window * self.dilation) & (d % self.dilation == 0)

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        near, far, g, reach = q_lo - k_hi, q_hi - k_lo, self.dilation, self.window * self.dilation
        xp = _numpy_of(near, far)
        last = xp.minimum(far, reach) // g * g  # the largest multiple within reach
        some = last >= xp.maximum(near, -reach)
        every = (near >= -reach) & (far <= reach)
        return _verdict(some, every if g == 1 else some & every & (near == far))


@register_dataclass
@dataclass(frozen=True, repr=False)
class Neighborhood(Mask):
    """The nearest keys on a grid, see `attnjax.core.neighborhood`."""

    axes: grid.Axes = _static()

    def resolve(self, T, S):
        size = math.prod(axis.extent for axis in self.axes)
        if not T == S == size:
            raise ValueError(f"{self}: shape has {size} positions, expected T = {T} and S = {S}")
        return self

    def allowed(self, q_pos, k_pos):
        return grid.allowed(self.axes, q_pos, k_pos, _numpy_of(q_pos, k_pos))

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        xp = _numpy_of(q_lo, q_hi, k_lo, k_hi)
        return _verdict(*grid.meets(self.axes, (q_lo, q_hi), (k_lo, k_hi), xp))

    def __repr__(self):
        return f"neighborhood{tuple(zip(*self.axes, strict=True))}"


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
        return _verdict(self._below(q_lo, k_lo), self._below(q_hi, k_hi))

    def _below(self, q_pos, k_pos):
        sides = [(_rank4(x), n) for x, n in ((q_pos, self.q), (k_pos, self.k)) if n is not None]
        return grid.every_one(x < n[:, None, None, None].astype(x.dtype) for x, n in sides)


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
        xp = _numpy_of(self, q_pos, k_pos)
        q, k = _same_rank(_at(self.q_ids, q_pos, xp), _at(self.k_ids, k_pos, xp))
        return (q == k) & (q >= 0)

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        xp = _numpy_of(self, q_lo, q_hi, k_lo, k_hi)
        q_ids, k_ids = _labels(self.q_ids, self.k_ids)
        q, q_least, q_most, q_alike = _spans(q_ids, q_lo, q_hi, xp)
        k, k_least, k_most, k_alike = _spans(k_ids, k_lo, k_hi, xp)
        some = (q_least <= q_most) & (k_least <= k_most) & (q_least <= k_most) & (k_least <= q_most)
        return _verdict(some, q_alike & k_alike & (q == k) & (q >= 0))


@register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class Array(Mask):
    """mask[.., q, k]; a dimension of size one serves all positions."""

    mask: Any

    def resolve(self, T, S):
        rows, columns = self.mask.shape[-2:]
        if rows not in (1, T) or columns not in (1, S):
            want = f"(.., {T} or 1, {S} or 1)"
            raise ValueError(f"array: mask has shape {self.mask.shape}, expected {want}")
        return self

    def allowed(self, q_pos, k_pos):
        xp, (rows, columns) = _numpy_of(self, q_pos, k_pos), self.mask.shape[-2:]
        q, k = xp.clip(q_pos, 0, rows - 1), xp.clip(k_pos, 0, columns - 1)
        return xp.asarray(self.mask)[..., q, k]

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        xp, (rows, columns) = _numpy_of(self, q_lo, q_hi, k_lo, k_hi), self.mask.shape[-2:]
        top, bottom = xp.clip(q_lo, 0, rows - 1), xp.clip(q_hi, 0, rows - 1) + 1
        left, right = xp.clip(k_lo, 0, columns - 1), xp.clip(k_hi, 0, columns - 1) + 1
        # sums[.., i, j] counts what is allowed above and left of corner (i, j)
        sums = self.mask.cumsum(axis=-2, dtype=np.int32).cumsum(axis=-1, dtype=np.int32)
        pad = _numpy_of(sums).pad
        sums = xp.asarray(pad(sums, [(0, 0)] * (sums.ndim - 2) + [(1, 0), (1, 0)]))
        inside = sums[..., bottom, right] - sums[..., top, right]
        inside -= sums[..., bottom, left] - sums[..., top, left]
        _, area = _same_rank(inside, (bottom - top) * (right - left))
        return _verdict(inside > 0, inside == area)


@register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class BlockLayout(Mask):
    """layout[.., q // block_q, k // block_k], for a layout (nq, nk) or (N|1, nq, nk)."""

    layout: Any
    block_q: int = _static()
    block_k: int = _static()

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

    @property
    def _cells(self):
        return Array(self.layout if self.layout.ndim == 2 else self.layout[None])


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
        return self._logic(*_same_rank(*(m.allowed(q_pos, k_pos) for m in (self.a, self.b))))

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        a, b = _same_rank(*(m.classify(q_lo, q_hi, k_lo, k_hi) for m in (self.a, self.b)))
        return getattr(_numpy_of(a, b), self._kleene)(a, b)


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

    def __repr__(self):
        return f"~({self.a})" if isinstance(self.a, Pair) else f"~{self.a}"


# ---------------------------------------------------------------- the public values and makers

causal = Window(None, 0)
"""k <= q: rows and columns start together (top-left)."""

causal_to_end = CausalToEnd()
"""k <= q + S - T: the last query sees the last key (bottom-right)."""


def window(left: int | None, right: int | None = 0) -> Mask:
    """q - left <= k <= q + right; None is no limit, so `window(0, None)` looks only ahead."""
    check = lambda name, n: n if n is None else _integer(f"window: {name}", n, 0, " or None")
    return Window(check("left", left), check("right", right))


def sinks(n: int) -> Mask:
    """k < n: the first n keys are seen by every query."""
    return Sinks(_integer("sinks: n", n, 0))


def prefix(n: Any) -> Mask:
    """k < n, for an int or (B,) ints, one per example; a prefix-LM is `causal | prefix(n)`."""
    if isinstance(n, int | np.integer):
        return Prefix(_integer("prefix: n", n, 0))
    return Lengths(None, _integers("prefix: n", n, {1: "an int or (B,)"}))


def dilated(window: int, dilation: int) -> Mask:
    """|q - k| <= window * dilation and q - k is a multiple of dilation (2 window + 1 keys)."""
    window = _integer("dilated: window", window, 0)
    dilation = _integer("dilated: dilation", dilation, 1)
    _integer("dilated: window * dilation", window * dilation, 0)
    return Dilated(window, dilation)


def document(q_ids: Any, k_ids: Any = None) -> Mask:
    """Equal ids attend; ids (T,) or (B, T) ints, `k_ids` (S,) or (B, S), by default the same.

    A negative id is padding: it attends to nothing and nothing attends to it.  Tiles are exact if
    every id is contiguous and keys have them in the queries' order (sorted ids, say), with padding
    at either end; for scattered ids they are conservative.
    """
    ranks = {1: "(T,)", 2: "(B, T)"}
    q_ids = _integers("document: q_ids", q_ids, ranks)
    return Document(q_ids, q_ids if k_ids is None else _integers("document: k_ids", k_ids, ranks))


def neighborhood(
    shape: int | Sequence[int],
    window: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
) -> Mask:
    """The nearest prod(window) keys on a grid of 1 to 3 axes; T = S = prod(shape), row-major.

    Per axis, a query sees `window` keys of its dilation class (k = q mod dilation), centered on it
    (an even window has its extra key on the left) and shifted inward at the borders.  Queries of a
    class share the window of their leader in runs of `stride`: 1 slides, stride = window gives
    separate blocks.  On a causal axis the window ends with the query's run, less the keys after the
    query.  1 <= stride <= window and window * dilation <= extent; a single value serves all axes.
    Papers: arXiv 2204.07143 (NAT), 2209.15001 (DiNA), 2504.16922 (GNA).
    """
    return Neighborhood(grid.axes_of(shape, window, stride, dilation, causal))


def lengths(q: Any = None, k: Any = None) -> Mask:
    """q_pos < q[b] and k_pos < k[b], for (B,) ints: right padding of queries, keys or both."""
    if q is None and k is None:
        raise ValueError("lengths: q and k are both None, expected (B,) integers for one at least")
    check = lambda name, n: n if n is None else _integers(f"lengths: {name}", n, {1: "(B,)"})
    return Lengths(check("q", q), check("k", k))


def block_layout(layout: Any, block_q: int, block_k: int) -> Mask:
    """Whole blocks of block_q x block_k, for a bool layout (nq, nk) or (N|1, nq, nk)."""
    layout = _array("block_layout: layout", layout, np.bool_, {2: "(nq, nk)", 3: "(N, nq, nk)"})
    block_q = _integer("block_layout: block_q", block_q, 1)
    block_k = _integer("block_layout: block_k", block_k, 1)
    return BlockLayout(layout, block_q, block_k)


def array(mask: Any) -> Mask:
    """Any bool array, (T, S) or broadcastable to (B, N, T, S); True may attend."""
    return Array(_array("array: mask", mask, np.bool_, {2: "(T, S)", 4: "(B, N, T, S)"}))


# ---------------------------------------------------------------- arithmetic on rectangles


def tile_kinds(mask: Mask, T: int, S: int, block_q: int, block_k: int, q_pos: Any, k_pos: Any):
    """`Mask.tiles` of a resolved mask, which may be that of longer sequences."""
    tiles = tile_kinds_of_each(mask, T, S, block_q, block_k, q_pos, k_pos)
    low, high = tiles.min((0, 1)), tiles.max((0, 1))
    return _numpy_of(tiles).where(low == high, low, low.dtype.type(PARTIAL))


def tile_kinds_of_each(mask: Mask, T: int, S: int, block_q: int, block_k: int, q_pos, k_pos):
    """The same for each example and head, (B|1, N|1, rows, columns)."""
    q = [x[:, None] for x in _intervals("q_positions", q_pos, _integer("T", T, 1), block_q)]
    k = [x[None] for x in _intervals("k_positions", k_pos, _integer("S", S, 1), block_k)]
    return _fill(_rank4(mask.classify(*q, *k)), len(q[0]), k[0].shape[1])


def _numpy_of(*values: Any) -> Any:
    """jax.numpy if any leaf is a JAX array, traced or not, else NumPy."""
    leaves = jax.tree_util.tree_leaves(values)
    return jnp if any(isinstance(x, jax.Array) for x in leaves) else np


def _verdict(some: Any, every: Any) -> Any:
    """EMPTY, PARTIAL, FULL as numbers; `every` may hold only where `some` does."""
    return some.astype(np.int8) + every.astype(np.int8)


def _rank4(x: Any) -> Any:
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _same_rank(a: Any, b: Any) -> tuple[Any, Any]:
    return (a, b) if a.ndim == b.ndim else (_rank4(a), _rank4(b))


def _fill(x: Any, rows: int, columns: int) -> Any:
    """Broadcasts the last two dimensions; writable where it is NumPy."""
    shape = x.shape[:-2] + (rows, columns)
    return np.array(np.broadcast_to(x, shape)) if _numpy_of(x) is np else jnp.broadcast_to(x, shape)


def _intervals(name: str, positions: Any, length: int, block: int) -> tuple[Any, Any]:
    """Smallest and largest position of each block."""
    _integer("block_q" if name[0] == "q" else "block_k", block, 1)
    blocks = -(-length // block)
    if positions is None:
        start = np.arange(blocks, dtype=np.int32) * np.int32(block)
        return start, np.minimum(start + (block - 1), length - 1)
    positions = _integers(name, positions, {1: f"({length},)"})
    if positions.shape != (length,):
        raise ValueError(f"{name}: got shape {positions.shape}, expected ({length},)")
    padded = _numpy_of(positions).pad(positions, (0, blocks * block - length), mode="edge")
    return padded.reshape(blocks, block).min(1), padded.reshape(blocks, block).max(1)


def _at(table: Any, pos: Any, xp: Any) -> Any:
    """table[.., pos] for a table (X,), or (B, 1, *pos.shape) for (B, X)."""
    return xp.take(table if table.ndim == 1 else table[:, None], pos, axis=-1, mode="clip")


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
    xp = _numpy_of(q_ids, k_ids)

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
    at, own = functools.partial(_at, xp=xp), _numpy_of(labels)
    mirrored = own.where(labels < 0, -_FAR, -labels)[..., ::-1]
    least, most = -_running_max(mirrored)[..., ::-1], _running_max(labels)
    change = own.pad(labels[..., 1:] != labels[..., :-1], [(0, 0)] * (labels.ndim - 1) + [(1, 0)])
    run = own.cumsum(change, axis=-1, dtype=np.int32)
    return at(labels, lo), at(least, lo), at(most, hi), at(run, lo) == at(run, hi)


def _running_max(x: Any) -> Any:
    host = _numpy_of(x) is np
    return np.maximum.accumulate(x, axis=-1) if host else jax.lax.cummax(x, axis=x.ndim - 1)


# ---------------------------------------------------------------- checks and printing


def _integer(name: str, value: Any, low: int, other: str = "") -> int:
    expected = f"expected an integer in {low} .. 2**31 - 1{other}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}, {expected}")
    if not low <= value <= _FAR:
        raise ValueError(f"{name} is {value}, {expected}")
    return int(value)


def _array(name: str, value: Any, kind: Any, ranks: dict[int, str]) -> Any:
    value = value if isinstance(value, Tracer) else np.asarray(value)
    if value.ndim not in ranks:
        raise ValueError(f"{name} has shape {value.shape}, expected {' or '.join(ranks.values())}")
    if not jnp.issubdtype(value.dtype, kind):
        raise TypeError(f"{name} has dtype {value.dtype}, expected {kind.__name__}")
    return value


def _integers(name: str, value: Any, ranks: dict[int, str]) -> Any:
    value = _array(name, value, np.integer, ranks)
    if isinstance(value, np.ndarray) and (value.astype(np.int32) != value).any():
        raise ValueError(f"{name} reaches beyond 32 bits, expected values that fit int32")
    return value.astype(np.int32)


def _show(value: Any) -> str:
    shape = ",".join(map(str, getattr(value, "shape", ())))
    return f"{value.dtype}[{shape}]" if hasattr(value, "dtype") else repr(value)
