"""The geometry behind `masks.neighborhood`: windows along one axis, and boxes of a grid.

Along an axis of `extent` positions with dilation g, position i is member c = i // g of class
r = i % g.  Members of other classes never meet; inside a class a query sees an interval of members,

    leader = min(stride * (c // stride) + stride // 2, members - 1)    center of its run of queries
    first  = clip(leader - window // 2, 0, members - window)           shifted inward at the borders
    last   = first + window - 1

or, on a causal axis, the members from max(0, leader - window + 1) to c, where the leader is the
last query of the run.  Both ends never decrease with c, and since stride <= window the windows of
neighboring queries leave no gap.  So the windows of queries c0 .. c1 together are exactly
first(c0) .. last(c1), and their common part is first(c1) .. last(c0): two comparisons decide
whether some, and whether every, pair of two intervals is allowed.

A grid of several axes is the product of its axes, over coordinates of row-major positions.

Papers: Hassani et al., Neighborhood Attention Transformer, 2023, arXiv 2204.07143 (window);
Hassani and Shi, Dilated Neighborhood Attention Transformer, 2022, arXiv 2209.15001 (dilation);
Hassani et al., Generalized Neighborhood Attention, 2025, arXiv 2504.16922 (stride, leaders).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.tree_util import register_dataclass

from attnjax.core.masks.base import Extent, Mask, every_one, numpy_of, static_field, verdict

Interval = tuple[Any, Any]  # inclusive ends, integer arrays
Box = tuple[Any, list[Interval]]  # whether it exists, and an interval of coordinates per axis


class Axis(NamedTuple):
    """One axis of a neighborhood: 1 <= stride <= window, and window * dilation <= extent."""

    extent: int
    window: int
    stride: int
    dilation: int
    causal: bool

    def span(self, c: Any, members: Any, xp: Any) -> Interval:
        """First and last member that query `c` sees, in a class of so many `members`."""
        run = c // self.stride * self.stride
        if self.causal:
            leader = xp.minimum(run + self.stride - 1, members - 1)
            return xp.maximum(leader - self.window + 1, 0), c
        leader = xp.minimum(run + self.stride // 2, members - 1)
        first = xp.clip(leader - self.window // 2, 0, members - self.window)
        return first, first + self.window - 1

    def allowed(self, q: Any, k: Any, xp: Any) -> Any:
        """Whether query coordinate `q` sees key coordinate `k`; elementwise."""
        g, r = self.dilation, q % self.dilation
        first, last = self.span(q // g, self._members(r), xp)
        return (k % g == r) & (first <= k // g) & (k // g <= last)

    def meets(self, q: Interval, k: Interval, xp: Any) -> tuple[Any, Any]:
        """Whether some, and whether every, pair of two coordinate intervals is allowed; exact."""
        (q_lo, q_hi), (k_lo, k_hi), g = q, k, self.dilation
        if g == 1:
            first_lo, last_lo = self.span(q_lo, self.extent, xp)
            first_hi, last_hi = self.span(q_hi, self.extent, xp)
            some = (first_lo <= k_hi) & (k_lo <= last_hi)
            return some, (first_hi <= k_lo) & (k_hi <= last_lo)

        # As r grows, the intervals' members of class r change only where r passes the class of an
        # end, and the size of the class only at extent % g.  Past an upper end a class can but lose
        # a member; so the classes that start one of the other stretches speak for all.
        some = False
        for r in (0, q_lo % g, k_lo % g, self.extent % g):
            c_lo, c_hi = (q_lo - r + g - 1) // g, (q_hi - r) // g
            d_lo, d_hi = (k_lo - r + g - 1) // g, (k_hi - r) // g
            first = self.span(c_lo, self._members(r), xp)[0]
            last = self.span(c_hi, self._members(r), xp)[1]
            some |= (c_lo <= c_hi) & (d_lo <= d_hi) & (first <= d_hi) & (d_lo <= last)
        # Two neighboring positions are of different classes, and no key is of both.
        return some, some & (q_lo == q_hi) & (k_lo == k_hi)

    def _members(self, r: Any) -> Any:
        return (self.extent - 1 - r) // self.dilation + 1


Axes = tuple[Axis, ...]


def axes_of(shape: Any, window: Any, stride: Any, dilation: Any, causal: Any) -> Axes:
    """Checks the arguments of `masks.neighborhood`, each one value for all axes or one per axis."""
    shape = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not 1 <= len(shape) <= 3:
        raise ValueError(f"neighborhood: shape is {shape}, expected 1 to 3 axes")
    columns = (
        _per_axis("shape", shape, shape, int),
        _per_axis("window", window, shape, int),
        _per_axis("stride", stride, shape, int),
        _per_axis("dilation", dilation, shape, int),
        _per_axis("causal", causal, shape, bool),
    )
    axes = tuple(Axis(*row) for row in zip(*columns, strict=True))
    for axis in axes:
        if min(axis[:4]) < 1 or axis.stride > axis.window:
            raise ValueError(f"neighborhood: {axis}, expected 1 <= stride <= window, dilation >= 1")
        if axis.window * axis.dilation > axis.extent:
            raise ValueError(f"neighborhood: {axis}, expected window * dilation <= extent")
    return axes


def _per_axis(name: str, value: Any, shape: tuple[int, ...], kind: type) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * len(shape)
    if len(values) != len(shape):
        raise ValueError(f"neighborhood: {name} is {value}, expected one or {len(shape)} values")
    if any(type(v) is not kind for v in values):
        raise TypeError(f"neighborhood: {name} is {value!r}, expected {kind.__name__} values")
    return values


def allowed(axes: Axes, q: Any, k: Any, xp: Any) -> Any:
    """Whether query position `q` sees key position `k`; elementwise."""
    coordinates = zip(axes, _unravel(q, axes), _unravel(k, axes), strict=True)
    return every_one(axis.allowed(i, j, xp) for axis, i, j in coordinates)


def meets(axes: Axes, q: Interval, k: Interval, xp: Any) -> tuple[Any, Any]:
    """Whether some, and whether every, pair of two position intervals is allowed; exact."""
    some, every = False, True
    for q_exists, q_box in _boxes(*q, axes, xp):
        for k_exists, k_box in _boxes(*k, axes, xp):
            # On boxes a product is empty iff one factor is, and full iff all factors are.
            sides = zip(axes, q_box, k_box, strict=True)
            somes, everys = zip(*(axis.meets(i, j, xp) for axis, i, j in sides), strict=True)
            exists = q_exists & k_exists
            some = some | (exists & every_one(somes))
            every = every & (~exists | every_one(everys))
    return some, every


def _boxes(lo: Any, hi: Any, axes: Axes, xp: Any) -> Iterator[Box]:
    """Cuts the row-major interval lo .. hi of an r-dimensional grid into at most 2 r - 1 boxes.

    From `lo` the path climbs to the axis where both ends part, and from there descends to `hi`:
    each step is a box with fixed leading and free trailing coordinates.
    """
    start, stop = _unravel(lo, axes), _unravel(hi, axes)
    whole = [(0, axis.extent - 1) for axis in axes]
    together = lo == lo  # both ends share their coordinates before this axis
    for i, axis in enumerate(axes):
        # An inner step leaves out the row of its end, which the steps further in will cut.
        inner = int(i < len(axes) - 1)
        a, b, rest = start[i], stop[i], whole[i + 1 :]
        climb = a + inner, xp.where(together, b - inner, axis.extent - 1)
        yield climb[0] <= climb[1], [(x, x) for x in start[:i]] + [climb] + rest
        if i:
            descent = 0, b - inner
            yield ~together & (b >= inner), [(x, x) for x in stop[:i]] + [descent] + rest
        together = together & (a == b)


def _unravel(position: Any, axes: Axes) -> list[Any]:
    coordinates = []
    for axis in reversed(axes):
        coordinates.append(position % axis.extent)
        position = position // axis.extent
    return coordinates[::-1]


@register_dataclass
@dataclass(frozen=True, repr=False)
class Neighborhood(Mask):
    """The nearest keys on a grid."""

    axes: Axes = static_field()

    def resolve(self, T, S):
        size = math.prod(axis.extent for axis in self.axes)
        if not T == S == size:
            raise ValueError(f"{self}: shape has {size} positions, expected T = {T} and S = {S}")
        return self

    @property
    def extents(self):
        size = math.prod(axis.extent for axis in self.axes)
        return (Extent(f"{self} of {size} cells", size, rides=False),) * 2

    def allowed(self, q_pos, k_pos):
        return allowed(self.axes, q_pos, k_pos, numpy_of(q_pos, k_pos))

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        xp = numpy_of(q_lo, q_hi, k_lo, k_hi)
        return verdict(*meets(self.axes, (q_lo, q_hi), (k_lo, k_hi), xp))

    def __repr__(self):
        return f"neighborhood{tuple(zip(*self.axes, strict=True))}"


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
    return Neighborhood(axes_of(shape, window, stride, dilation, causal))
