"""Attention inside the windows of a grid, and what this family computes on grids.

    A_ij = softmax_j(q_i . k_j / sqrt(H) + table[place of j - place of i]),    j in the window of i

Windows are boxes that share no cell. Shifted, they begin `shift` cells later on each axis. Those
across the end of an axis also have the cells at its beginning, but cells from both sides of the
border do not meet. Other leaves cut grids into rows, strips, or boxes with a halo of more keys.

Paper: Zhang, "Flash Window Attention: speedup the attention computation for Swin Transformer",
2025, arXiv:2501.06480, of the windows of Liu et al., "Swin Transformer: Hierarchical Vision
Transformer using Shifted Windows", 2021, arXiv:2103.14030, section 3.2; Chu et al., "Twins:
Revisiting the Design of Spatial Attention in Vision Transformers", 2021, arXiv:2104.13840 (its
locally-grouped attention has no table and no shift).
Limits: one window is softmax attention.
Differs: tables are indexed by the key's place less the query's, index 0 the most negative; those of
Swin the other way round, which `table[:, ::-1, ::-1]` turns. Windows over the edge have fewer
cells: the code of Twins fills them with zeros, which take part as keys, and that of Swin refuses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods
from attnjax.core.numerics import Affine, einsum, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op, square_grid
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV

PerAxis = int | Sequence[int]

# ------------------------------------------------------------------------------------------ boxes


class Run(NamedTuple):
    """The boxes of one axis: (boxes, places) arrays.

    at     position on the axis; beyond its end where there is no cell
    turn   how often the axis was left at its end, negative at its beginning
    """

    at: np.ndarray
    turn: np.ndarray


@dataclass(frozen=True, eq=False)
class Boxes:
    """A row-major grid of 1 to 3 axes, cut into boxes; `boxes` makes it.

    shape   of the grid, T cells
    cells   (boxes, c): the cells of each box, T where there is none
    keys    (boxes, s): those of the box and of its halo
    parts   two arrays like them: cells see keys of the same part; -1 where there is no cell
    steps   (axes, c, s): from a cell to a key, in steps of the dilation
    reach   the largest of these on each axis
    """

    shape: tuple[int, ...]
    cells: np.ndarray
    keys: np.ndarray
    parts: tuple[np.ndarray, np.ndarray]
    steps: np.ndarray
    reach: tuple[int, ...]

    def take(self, x: Float[Array, "B T ..."]) -> Array:
        """(B,T,...) -> (B boxes, c, ...), zeros where there is no cell."""
        return self._taken(x, self.cells)

    def take_keys(self, x: Float[Array, "B T ..."]) -> Array:
        """The same with the halo, (B boxes, s, ...)."""
        return self._taken(x, self.keys)

    def _taken(self, x: Array, order: np.ndarray) -> Array:
        T = math.prod(self.shape)
        if x.shape[1] != T:
            raise ValueError(f"shape: {self.shape}; expected T = {x.shape[1]} cells")
        taken = x[:, np.minimum(order, T - 1).reshape(order.size)]
        if (order == T).any():
            there = (order < T).reshape(1, order.size, *(1,) * (x.ndim - 2))
            taken = jnp.where(there, taken, jnp.zeros((), x.dtype))
        return taken.reshape(x.shape[0] * order.shape[0], order.shape[1], *x.shape[2:])

    def restored(self, x: Float[Array, "boxes c ..."]) -> Array:
        """The inverse of `take`: (B boxes, c, ...) -> (B,T,...)."""
        n, c = self.cells.shape
        flat = self.cells.reshape(n * c)
        place = np.zeros(math.prod(self.shape), int)
        there = np.flatnonzero(flat < len(place))
        place[flat[there]] = there
        return x.reshape(x.shape[0] // n, n * c, *x.shape[2:])[:, place]

    def mask(self, B: int) -> masks.Mask:
        """Which keys of its box a cell sees, for B examples."""
        first = self.parts[0][0, 0]
        if all((part == first).all() for part in self.parts):
            return masks.everything
        return masks.document(*(np.tile(part, (B, 1)) for part in self.parts))

    def attend(self, q: Q, k: TokenK, v: TokenV, **terms: Any) -> Out:
        """`attend` with these arguments inside each box."""
        q, k, v = self.take(q), self.take_keys(k), self.take_keys(v)
        B = len(q) // len(self.cells)
        return self.restored(attend(q, k, v, mask=self.mask(B), **terms))

    def bias(self, table: Float[Array, "N ..."]) -> mods.Mod:
        """score + table[n, steps from the query to the key], (N, 2 reach + 1 for each axis)."""
        expected = tuple(2 * r + 1 for r in self.reach)
        if table.shape[1:] != expected:
            raise ValueError(f"table: shape {table.shape}; expected (N, *{expected})")
        entries = self.steps + np.array(self.reach)[:, None, None]
        return mods.pair_bias(table[:, *entries][None])


def boxes(
    shape: Sequence[int],
    size: PerAxis,
    *,
    shift: PerAxis = 0,
    halo: PerAxis = 0,
    dilation: PerAxis = 1,
) -> Boxes:
    """Boxes of `size` cells on each axis; a number serves all axes.

    shift      where the first box begins; the last goes on with the cells before it, as other parts
    halo       keys in front of a box and behind it
    dilation   a box takes every so manieth cell: there are as many interleaved sets of boxes

    Where a box is over the edge, and a halo outside, there is no cell.
    """
    shape = tuple(shape)
    if not 1 <= len(shape) <= 3 or min(shape) < 1:
        raise ValueError(f"shape: {shape}; expected 1 to 3 axes of at least one cell")
    given = {"size": (size, 1), "shift": (shift, 0), "halo": (halo, 0), "dilation": (dilation, 1)}
    sizes, shifts, halos, dilations = (
        per_axis(name, value, len(shape), least) for name, (value, least) in given.items()
    )
    inner = [_run(*axis, halo=0) for axis in zip(shape, sizes, shifts, dilations, strict=True)]
    outer = [
        _run(*axis[:4], halo=axis[4])
        for axis in zip(shape, sizes, shifts, dilations, halos, strict=True)
    ]
    local = [np.arange(-h, n + h) for n, h in zip(sizes, halos, strict=True)]
    places = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"))
    around = np.stack(np.meshgrid(*local, indexing="ij"))
    flat = lambda x: x.reshape(len(shape), math.prod(x.shape[1:]))
    return Boxes(
        shape,
        _joined(shape, inner),
        _joined(shape, outer),
        _parts(shape, inner, outer),
        flat(around)[:, None, :] - flat(places)[:, :, None],
        tuple(n - 1 + h for n, h in zip(sizes, halos, strict=True)),
    )


def per_axis(name: str, value: PerAxis, axes: int, least: int = 1) -> tuple[int, ...]:
    """One integer for each axis."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes or any(type(n) is not int or n < least for n in values):
        raise ValueError(f"{name}: {value}; expected one or {axes} integers of at least {least}")
    return values


def _run(extent: int, size: int, shift: int, dilation: int, *, halo: int) -> Run:
    members = -(-extent // dilation)
    count = -(-members // size)
    member = np.arange(count)[:, None] * size + np.arange(-halo, size + halo) + shift
    turn, member = np.divmod(member, count * size)
    own = turn[:, halo : halo + size]
    inside = (turn >= own[:, :1]) & (turn <= own[:, -1:])
    at = np.arange(dilation)[:, None, None] + dilation * member
    at = np.where(inside, at, extent)
    flat = lambda x: np.broadcast_to(x, at.shape).reshape(dilation * count, at.shape[2])
    return Run(flat(at), flat(turn))


def _joined(shape: tuple[int, ...], axes: Sequence[Run]) -> np.ndarray:
    """The cells of the boxes that are the products of those of the axes."""
    at = [np.where(run.at < n, run.at, n) for n, run in zip(shape, axes, strict=True)]
    there = _product([x < n for n, x in zip(shape, at, strict=True)], np.logical_and)
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    cells = _product([x * n for n, x in zip(strides, at, strict=True)], np.add)
    return np.where(there, cells, math.prod(shape))


def _parts(
    shape: tuple[int, ...], inner: Sequence[Run], outer: Sequence[Run]
) -> tuple[np.ndarray, np.ndarray]:
    """A number for all turns together; the turns of a halo are none of its box's."""
    low = [run.turn.min() for run in outer]
    spans = [int(run.turn.max() - n + 1) for run, n in zip(outer, low, strict=True)]
    strides = [math.prod(spans[i + 1 :]) for i in range(len(spans))]

    def part(axes: Sequence[Run]) -> np.ndarray:
        turns = [(run.turn - n) * by for run, n, by in zip(axes, low, strides, strict=True)]
        return np.where(_joined(shape, axes) < math.prod(shape), _product(turns, np.add), -1)

    return part(inner), part(outer)


def _product(axes: Sequence[np.ndarray], join: np.ufunc) -> np.ndarray:
    """(boxes, places) of each axis -> those of the grid, row-major."""
    out = axes[0]
    for x in axes[1:]:
        pairs = join(out[:, None, :, None], x[None, :, None, :])
        out = pairs.reshape(len(out) * len(x), out.shape[1] * x.shape[1])
    return out


def along(shape: Sequence[int], axis: int) -> Boxes:
    """The rows of an axis."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis: {axis}; expected one of {len(shape)}")
    size = [n if i == axis % len(shape) else 1 for i, n in enumerate(shape)]
    return boxes(shape, size)


# --------------------------------------------------------------------------------- means, places


def adaptive_means(x: Float[Array, "B T W"], shape: Sequence[int], pools: Sequence[int]) -> Array:
    """Means over pools[a] runs of each axis, (B, prod(pools), W), wide.

    Run i of P on an axis of E cells is floor(i E / P) .. ceil((i + 1) E / P) - 1: where P does not
    divide E neighbors share a cell.
    """
    B, T, W = x.shape
    if math.prod(shape) != T or len(pools) != len(shape):
        raise ValueError(f"shape, pools: {tuple(shape)}, {tuple(pools)}; expected T = {T} cells")
    grid = wide(x).reshape(B, *shape, W)
    for axis, (E, P) in enumerate(zip(shape, pools, strict=True), start=1):
        mean = jnp.asarray(run_means(E, P), grid.dtype)
        grid = jnp.moveaxis(einsum("PE,...E->...P", mean, jnp.moveaxis(grid, axis, -1)), -1, axis)
    return grid.reshape(B, math.prod(pools), W)


def run_means(E: int, P: int) -> Float[np.ndarray, "P E"]:
    """What multiplies E cells to the means of P runs."""
    first, last = np.arange(P) * E // P, -(-(np.arange(P) + 1) * E // P)
    inside = (np.arange(E) >= first[:, None]) & (np.arange(E) < last[:, None])
    return inside / inside.sum(1, keepdims=True)


class PlaceNet(NamedTuple):
    """A perceptron of relative places on a map, for N heads."""

    inner: Annotated[Affine, "2 E"]
    outer: Annotated[Affine, "E N"]

    def __call__(self, places: np.ndarray, extents: Sequence[int]) -> Array:
        """places (...,2), in cells of a map of `extents`, log-spaced -> (...,N), wide.

        x counts as sign(x) log_8(1 + 8 |x| / (extent - 1)).
        """
        by = np.maximum(np.array(extents) - 1, 1) / 8
        logs = np.sign(places) * np.log2(1 + np.abs(places) / by) / 3
        hidden = jax.nn.relu(self.inner(jnp.asarray(logs, wide(self.inner.w).dtype)))
        return self.outer(hidden)


# ---------------------------------------------------------------------------------------- the op


@of_whole_text
@on_any_mesh
def window_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    shape: Sequence[int],
    window: PerAxis,
    shift: PerAxis = 0,
    table: Float[Array, "N ..."] | None = None,
    impl: Impl = None,
) -> Out:
    """Softmax attention in windows of a grid, T = S = prod(shape) cells in row-major order.

    `window` and `shift` are one number for all axes or one each. `table`, of shape
    (N, 2 window - 1 for each axis), is the learned bias of relative places.
    """
    cut = boxes(shape, window, shift=shift)
    bias = () if table is None else (cut.bias(table),)
    return cut.attend(q, k, v, mods=bias, impl=impl)


OPS = (
    Op(
        window_attention,
        papers=(222, 169),
        reads="all",
        sizes={"T": 15, "S": 15},
        draw={
            "shape": square_grid,
            "window": (2, 3),
            "shift": (0, 1),
            "table": Draw(lambda slot: slot.normal("N 3 5")),
        },
        limits=(
            Limit(
                "one window is softmax attention",
                {"window": square_grid, "shift": 0, "table": None},
                multi_head_attention,
            ),
        ),
    ),
)
