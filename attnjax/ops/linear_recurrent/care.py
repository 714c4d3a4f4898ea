"""CARE attention: decoupled channels, mixed by two interactions, the second with a memory.

    u = decoupled(x),    y = u + Inter_1(u),    [z', x'] = [z, y] + Inter_2([z, y])
    Inter(u) = conv_3x3(gelu(norm(u) W_1 + b_1)) W_2 + b_2,    z: memory carried along layers

with a depthwise convolution that has a bias, too, and a norm that is a gain and a shift of each
channel, those of a batch norm.

Paper: Zhou et al., "CARE Transformer: Mobile-Friendly Linear Visual Transformer via Decoupled Dual
Interaction", 2024, arXiv:2411.16170.
Limits: Inter_2 = 0 leaves Inter_1 of the decoupled channels, and the memory as it was.
Differs: the block around it, [z, x] + gain * [z', x'] with a gain of each channel, belongs to a
layer.  Released as a model's last block, Inter_2 ends before W_2 and has no residual.
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import gelu

from attnjax.core.numerics import Affine, aligned, wide
from attnjax.core.recurrence.linear import Impl
from attnjax.core.scan.convolution import depthwise
from attnjax.core.sharding import of_whole_text
from attnjax.op import Limit, Op, adjusted, square_grid
from attnjax.ops.linear_recurrent.care_decoupled import SIZES, Decoupled, decoupled_attention
from attnjax.typing import Array, Float


class Interaction(NamedTuple):
    """Norm, and convolutions 1 x 1, 3 x 3 (of each channel) and 1 x 1, F channels between them."""

    gain: Float[Array, " W"]
    shift: Float[Array, " W"]
    expand: Annotated[Affine, "W F"]
    mix: Float[Array, "3 3 F"]
    mix_bias: Float[Array, " F"]
    contract: Annotated[Affine, "F W"]


class CareWeights(NamedTuple):
    """`inter_2` maps the channels of memory and tokens together, in this order."""

    decoupled: Decoupled
    inter_1: Interaction
    inter_2: Annotated[Interaction, "W+M G"]


@of_whole_text
def care_attention(
    x: Float[Array, "B T W"],
    memory: Float[Array, "B T M"],
    weights: CareWeights,
    *,
    shape: tuple[int, int],
    return_memory: bool = False,
    impl: Impl = None,
) -> Any:
    """On a grid given row by row; the new tokens, or (tokens, memory) for the next layer."""
    u = decoupled_attention(wide(x), weights.decoupled, shape=shape, impl=impl)
    y = u + interact(u, weights.inter_1, shape)
    both = jnp.concatenate([wide(memory), y], axis=-1)
    both = (both + interact(both, weights.inter_2, shape)).astype(x.dtype)
    memory, out = jnp.split(both, [memory.shape[-1]], axis=-1)
    return (out, memory) if return_memory else out


def interact(
    u: Float[Array, "B T W"], inter: Interaction, shape: tuple[int, int]
) -> Float[Array, "B T W"]:
    """Inter: every channel meets all others, and its neighbors on the grid."""
    w = jax.tree.map(wide, inter)
    hidden = gelu(w.expand(wide(u) * aligned(w.gain, u) + aligned(w.shift, u)), approximate=False)
    grid = hidden.reshape(len(u), *shape, hidden.shape[-1])
    mixed = depthwise(grid, w.mix, w.mix_bias).reshape(hidden.shape)
    return w.contract(mixed)


def _closed(weights: CareWeights) -> CareWeights:
    return weights._replace(inter_2=jax.tree.map(np.zeros_like, weights.inter_2))


def _inter_1_alone(x: Array, weights: CareWeights, shape: tuple[int, int]) -> Array:
    u = decoupled_attention(x, weights.decoupled, shape=shape)
    return u + interact(u, weights.inter_1, shape)


OPS = (
    Op(
        care_attention,
        papers=(386,),
        reads="all",
        draw={"shape": square_grid},
        sizes=SIZES | {"F": 24, "W+M": 16, "G": 32},
        limits=(
            Limit(
                "Inter_2 = 0 leaves Inter_1 alone", {"weights": adjusted(_closed)}, _inter_1_alone
            ),
        ),
    ),
)
