"""MambAttention: attention along time and along frequency by the same weights, then an SSM each.

    x += MHA(norm(x)),    x += Mamba(x) + reversed Mamba(x)

along time, then along frequency, each row by itself.

The weights of MHA are one set for both axes; norms and Mamba blocks belong to their axis.

Paper: Kühne, Jensen, Østergaard and Tan, "MambAttention: Mamba with Multi-Head Attention for
Generalizable Single-Channel Speech Enhancement", 2025, arXiv:2507.00966, section III.
Limits: without attention's and the mixers' output maps the block returns x.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import einsum, layer_norm, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op, adjusted, normal
from attnjax.ops.linear_recurrent.selective_mixer import SIZES, Mixer, both_directions
from attnjax.typing import Array, Float

Grid = Float[Array, "B T F W"]
Rows = Float[Array, "rows length W"]


class Shared(NamedTuple):
    """The weights of attention along either axis."""

    q: Float[Array, "W N H"]
    k: Float[Array, "W N H"]
    v: Float[Array, "W N H"]
    out: Float[Array, "N H W"]


class Axis(NamedTuple):
    """What an axis has for itself: scale and shift of its norm, and a mixer for each direction."""

    scale: Float[Array, " W"]
    shift: Float[Array, " W"]
    forward: Mixer
    backward: Mixer


def mambattention(
    x: Grid, shared: Shared, time: Axis, frequency: Axis, *, impl: Impl = None
) -> Grid:
    """Reads all of time, in both directions."""
    out = block_along(wide(x), shared, time, 1, impl)
    out = block_along(out, shared, frequency, 2, impl)
    return out.astype(x.dtype)


def block_along(x: Grid, shared: Shared, own: Axis, axis: int, impl: Impl = None) -> Grid:
    """Attention, then both mixers, along an axis: 1 for time and 2 for frequency."""

    def mix(rows: Rows) -> Rows:
        return both_directions(rows, own.forward, own.backward)

    normed = layer_norm(x) * wide(own.scale) + wide(own.shift)
    x = x + attend_along(normed, shared, axis, impl)
    return x + along(axis, x, mix)


def attend_along(x: Grid, shared: Shared, axis: int, impl: Impl = None) -> Grid:
    """Multi-head attention within each row of the axis."""

    def attend_within(rows: Rows) -> Rows:
        q = einsum("BTW,WNH->BTNH", rows, shared.q)
        k = einsum("BTW,WNH->BTNH", rows, shared.k)
        v = einsum("BTW,WNH->BTNH", rows, shared.v)
        return einsum("BTNH,NHW->BTW", attend(q, k, v, impl=impl), shared.out)

    return along(axis, x, attend_within)


def along(axis: int, x: Grid, fn: Callable[[Rows], Rows]) -> Grid:
    """What fn makes of all rows of the axis."""
    grid = jnp.moveaxis(x, axis, 2)
    rows = grid.reshape(-1, *grid.shape[2:])
    return jnp.moveaxis(fn(rows).reshape(grid.shape), 2, axis)


def _silent_attention(shared: Shared) -> Shared:
    return shared._replace(out=0 * shared.out)


def _silent_mixers(axis: Axis) -> Axis:
    forward = axis.forward._replace(out=0 * axis.forward.out)
    backward = axis.backward._replace(out=0 * axis.backward.out)
    return axis._replace(forward=forward, backward=backward)


_SILENT = {
    "shared": adjusted(_silent_attention),
    "time": adjusted(_silent_mixers),
    "frequency": adjusted(_silent_mixers),
}
OPS = (
    Op(
        mambattention,
        papers=(334,),
        reads="all",
        draw={"x": normal(0.5)},
        sizes=SIZES | {"F": 5},
        limits=(Limit("without output maps", _SILENT, features.identity),),
    ),
)
