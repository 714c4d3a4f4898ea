"""Decoupled channels of CARE: linear attention on some, depthwise convolutions on the others.

    y = [o, conv_3x3(x_2), conv_7x7(x_3)],    x = [x_1, x_2, x_3] along the d1 + d2 channels
    o_i = phi(q_i) sum_j phi(k_j) v_j^T / (phi(q_i) . sum_j phi(k_j)),    q, k, v = W x_1

with x_2 and x_3 half of the d2 channels each, and phi = elu + 1.

Paper: Zhou et al., "CARE Transformer: Mobile-Friendly Linear Visual Transformer via Decoupled Dual
Interaction", 2024, arXiv:2411.16170, section on asymmetrical feature decoupling (d1 = d2 / 2).
Limits: d2 = 0 is linear attention, d1 = 0 two convolutions.
"""

from typing import NamedTuple

import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import divide, einsum, wide
from attnjax.core.recurrence.linear import Impl, linear_attend
from attnjax.core.scan.convolution import depthwise
from attnjax.op import Limit, Op, fill, square_grid
from attnjax.typing import Array, Float


class Decoupled(NamedTuple):
    """qkv projects N H of W channels; each half of the 2 E others has its own kernel."""

    qkv: Float[Array, "3 NH N H"]
    small: Float[Array, "3 3 E"]
    large: Float[Array, "7 7 E"]


def decoupled_attention(
    x: Float[Array, "B T W"],
    weights: Decoupled,
    *,
    shape: tuple[int, int],
    impl: Impl = None,
) -> Float[Array, "B T W"]:
    """On a grid given row by row; each operation costs for its own channels only."""
    B, T, _ = x.shape
    d1 = weights.qkv.shape[1]
    x_1, x_23 = wide(x[..., :d1]), wide(x[..., d1:])
    q, k, v = einsum("BTC,pCNH->pBTNH", x_1, weights.qkv)
    q, k = features.elu1(q), features.elu1(k)
    parts = [linear_attend(q, k, v, normalize=divide, block=None, impl=impl)]
    if x_23.size:
        x_2, x_3 = jnp.split(x_23.reshape(B, *shape, -1), 2, axis=-1)
        parts += [depthwise(x_2, weights.small), depthwise(x_3, weights.large)]
    parts = [part.reshape(B, T, -1) for part in parts if part.size]
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)


def _zeros(x: Array) -> Array:
    return jnp.zeros_like(x)


SIZES = {"N": 2, "H": 2, "NH": 4, "E": 4, "W": 12}
OPS = (
    Op(
        decoupled_attention,
        papers=(386,),
        reads="all",
        draw={"shape": square_grid},
        sizes=SIZES,
        limits=(Limit("x = 0 gives zero", {"x": fill(0.0)}, _zeros),),
    ),
)
