"""CARE attention: decoupled channels, mixed by two interactions, the second with a memory.

    y = Inter_1(decoupled(x)),    [x', z'] = [y, z] + Inter_2([y, z])
    Inter(u) = gelu(conv_3x3(gelu(norm(u) W_1))) W_2,    z: memory carried along layers

Paper: Zhou et al., "CARE Transformer: Mobile-Friendly Linear Visual Transformer via Decoupled Dual
Interaction", 2024, arXiv:2411.16170.
Limits: Inter_2 = 0 leaves Inter_1 of the decoupled channels, and the memory as it was.
Differs: the gelus, the norm without weights, the depthwise middle convolution and the residual
around Inter_2 are choices; the paper gives the order of the convolutions and a 4-fold expansion.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core.numerics import layer_norm, wide
from attnjax.core.recurrence.linear import Impl
from attnjax.core.scan.convolution import depthwise
from attnjax.op import Limit, Sizes, Variant, grid, normal
from attnjax.ops.linear_recurrent.care_decoupled import Decoupled, decoupled_attention, draw, tokens
from attnjax.typing import Array, Float


class Interaction(NamedTuple):
    """Convolutions 1 x 1, 3 x 3 (of each channel) and 1 x 1, with E channels between them."""

    expand: Float[Array, "width E"]
    mix: Float[Array, "3 3 E"]
    contract: Float[Array, "E width"]


class CareWeights(NamedTuple):
    decoupled: Decoupled
    inter_1: Interaction
    inter_2: Interaction


def care_attention(
    x: Float[Array, "B T width"],
    memory: Float[Array, "B T M"],
    weights: CareWeights,
    *,
    shape: tuple[int, int],
    return_memory: bool = False,
    impl: Impl = None,
) -> Any:
    """On a grid given row by row; the new tokens, or (tokens, memory) for the next layer."""
    u = decoupled_attention(wide(x), weights.decoupled, shape=shape, impl=impl)
    both = jnp.concatenate([interact(u, weights.inter_1, shape), wide(memory)], axis=-1)
    both = (both + interact(both, weights.inter_2, shape)).astype(x.dtype)
    out, memory = jnp.split(both, [x.shape[-1]], axis=-1)
    return (out, memory) if return_memory else out


def interact(u: Array, inter: Interaction, shape: tuple[int, int]) -> Array:
    """Inter: every channel meets all others, and its neighbors on the grid."""
    product = lambda a, w: jnp.matmul(a, wide(w), precision="highest")
    hidden = jax.nn.gelu(product(layer_norm(wide(u)), inter.expand))
    near = depthwise(hidden.reshape(len(u), *shape, -1), inter.mix)
    return product(jax.nn.gelu(near).reshape(hidden.shape), inter.contract)


def _weights(key: Array, z: Sizes) -> CareWeights:
    def inter(key: Array, width: int) -> Interaction:
        shapes = ((width, 2 * width), (3, 3, 2 * width), (2 * width, width))
        keys = jax.random.split(key, 3)
        drawn = (0.4 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))
        return Interaction(*drawn)

    first, second, third = jax.random.split(key, 3)
    return CareWeights(draw(first, z), inter(second, 4 + z.D), inter(third, 4 + z.D + z.M))


def _closed(key: Array, z: Sizes) -> CareWeights:
    weights = _weights(key, z)
    return weights._replace(inter_2=jax.tree.map(jnp.zeros_like, weights.inter_2))


def _without(x: Array, memory: Array, weights: CareWeights, shape: tuple[int, int]) -> Array:
    return interact(decoupled_attention(x, weights.decoupled, shape=shape), weights.inter_1, shape)


VARIANT = Variant(
    care_attention,
    rows=(386,),
    paper="Zhou et al., 2024, arXiv:2411.16170",
    inputs={"q": None, "k": None, "v": None, "x": tokens, "memory": normal("B T M")}
    | {"weights": _weights, "shape": grid},
    engine="linear_attend",
    limits=(Limit("Inter_2 = 0 leaves Inter_1 alone", {"weights": _closed}, _without),),
    exempt={
        "causal": "reads all tokens, in both directions",
        "unequal": "queries and keys are the cells of one grid",
        "grouped": "takes no q, k, v of several heads",
    },
)
