"""MambAttention: attention along time and along frequency by the same weights, then an SSM each.

    x += MHA(norm(x)),    x += W_1 (x + Mamba_1(rms(x))) + W_2 (x + reversed Mamba_2(rms(x))) + b

along time, then along frequency, each row by itself.

The norm before MHA and its weights are one set for both axes; each axis has its own Mamba blocks.

Paper: Kühne, Jensen, Østergaard and Tan, "MambAttention: Mamba with Multi-Head Attention for
Generalizable Single-Channel Speech Enhancement", 2025, arXiv:2507.00966, section III.
Limits: without attention's output map and W_1, W_2, b the block returns x.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import aligned, einsum, layer_norm, matmul, rms_norm, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, adjusted, normal
from attnjax.ops.linear_recurrent.selective_mixer import SIZES, Mixer, each_direction
from attnjax.typing import Array, Float

Grid = Float[Array, "B T F W"]
Rows = Float[Array, "rows length W"]


class Shared(NamedTuple):
    """The weights of attention along either axis, and of the layer norm before it.

    A bias of keys cancels in the softmax, and one of values passes through it: the latter, times
    `out`, is part of `out_bias`.
    """

    scale: Float[Array, " W"]
    shift: Float[Array, " W"]
    q: Float[Array, "W N H"]
    q_bias: Float[Array, "N H"]
    k: Float[Array, "W N H"]
    v: Float[Array, "W N H"]
    out: Float[Array, "N H W"]
    out_bias: Float[Array, " W"]


class Direction(NamedTuple):
    """A Mamba block, the scale of the norm before it, and the map of its tokens into the sum."""

    scale: Float[Array, " W"]
    mixer: Mixer
    merge: Float[Array, "W W"]


class Axis(NamedTuple):
    """What an axis has for itself."""

    forward: Direction
    backward: Direction
    bias: Float[Array, " W"]


_EPS = 1e-5  # of both norms


@of_whole_text
@on_any_mesh
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
        normed = rms_norm(rows, _EPS)
        ahead, back = each_direction(
            normed * aligned(own.forward.scale, rows),
            normed * aligned(own.backward.scale, rows),
            own.forward.mixer,
            own.backward.mixer,
        )
        merged = matmul(rows + ahead, own.forward.merge) + matmul(rows + back, own.backward.merge)
        return merged + aligned(own.bias, merged)

    x = x + attend_along(x, shared, axis, impl)
    return x + along(axis, x, mix)


def attend_along(x: Grid, shared: Shared, axis: int, impl: Impl = None) -> Grid:
    """Multi-head attention to the normed tokens within each row of the axis."""
    normed = layer_norm(x, _EPS) * aligned(shared.scale, x) + aligned(shared.shift, x)

    def attend_within(rows: Rows) -> Rows:
        q = einsum("BTW,WNH->BTNH", rows, shared.q)
        q = q + aligned(shared.q_bias, q)
        k = einsum("BTW,WNH->BTNH", rows, shared.k)
        v = einsum("BTW,WNH->BTNH", rows, shared.v)
        out = einsum("BTNH,NHW->BTW", attend(q, k, v, impl=impl), shared.out)
        return out + aligned(shared.out_bias, out)

    return along(axis, normed, attend_within)


def along(axis: int, x: Grid, fn: Callable[[Rows], Rows]) -> Grid:
    """What fn makes of all rows of the axis."""
    grid = jnp.moveaxis(x, axis, 2)
    rows = grid.reshape(-1, *grid.shape[2:])
    return jnp.moveaxis(fn(rows).reshape(grid.shape), 2, axis)


def _silent_attention(shared: Shared) -> Shared:
    return shared._replace(out=0 * shared.out, out_bias=0 * shared.out_bias)


def _silent_mixers(axis: Axis) -> Axis:
    forward, backward = (d._replace(merge=0 * d.merge) for d in (axis.forward, axis.backward))
    return Axis(forward, backward, 0 * axis.bias)


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
