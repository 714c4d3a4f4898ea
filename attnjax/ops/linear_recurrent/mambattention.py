"""MambAttention: attention along time and along frequency by the same weights, then an SSM each.

    x += MHA(norm(x)),    x += Mamba(x) + reversed Mamba(x)

along time, then along frequency, each row by itself.

The weights of MHA are one set for both axes; norms and Mamba blocks belong to their axis.

Paper: Kühne, Jensen, Østergaard and Tan, "MambAttention: Mamba with Multi-Head Attention for
Generalizable Single-Channel Speech Enhancement", 2025, arXiv:2507.00966, section III.
Limits: without attention's and the mixers' output maps the block returns x.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from attnjax.core.numerics import layer_norm, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op, adjusted, normal
from attnjax.ops.linear_recurrent.selective_mixer import SIZES, Mixer, both_directions
from attnjax.typing import Array, Float

Grid = Float[Array, "B T F W"]


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


def mambattention(x: Grid, shared: Shared, time: Axis, frequency: Axis, *, impl: Impl = None):
    """Reads all of time, in both directions."""
    out = wide(x)
    for axis, own in ((1, time), (2, frequency)):
        normed = layer_norm(out) * wide(own.scale) + wide(own.shift)
        out += attend_along(normed, shared, axis, impl)
        mixed = lambda rows, own=own: both_directions(rows, own.forward, own.backward)
        out += along(axis, out, mixed)
    return out.astype(x.dtype)


def attend_along(x: Grid, shared: Shared, axis: int, impl: Impl = None) -> Grid:
    """Multi-head attention within each row of the axis, 1 for time and 2 for frequency."""
    product = lambda spec, x, w: jnp.einsum(spec, x, wide(w), precision="highest")

    def within(rows: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        q, k, v = (product("BTW,WNH->BTNH", rows, w) for w in shared[:3])
        return product("BTNH,NHW->BTW", attend(q, k, v, impl=impl), shared.out)

    return along(axis, x, within)


def along(axis: int, x: Grid, f: Any) -> Grid:
    """f of (rows,length,W), for all rows of the axis."""
    rows = jnp.moveaxis(x, axis, 2)
    return jnp.moveaxis(f(rows.reshape(-1, *rows.shape[2:])).reshape(rows.shape), 2, axis)


def _silent_attention(shared: Shared) -> Shared:
    return shared._replace(out=0 * shared.out)


def _silent_mixers(axis: Axis) -> Axis:
    silent = lambda mixer: mixer._replace(out=0 * mixer.out)
    return axis._replace(forward=silent(axis.forward), backward=silent(axis.backward))


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
        limits=(Limit("without output maps", _SILENT, lambda x: x),),
    ),
)
