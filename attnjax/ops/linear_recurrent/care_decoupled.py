"""Decoupled channels of CARE: linear attention on some, depthwise convolutions on the others.

    y = [o, conv_3x3(x_2), conv_7x7(x_3)],    x = [x_1, x_2, x_3] along the d1 + d2 channels
    o_i = phi(q_i) sum_j phi(k_j) v_j^T / (phi(q_i) . sum_j phi(k_j)),    q, k, v = W x_1

with x_2 and x_3 half of the d2 channels each, and phi = elu + 1.

Paper: Zhou et al., "CARE Transformer: Mobile-Friendly Linear Visual Transformer via Decoupled Dual
Interaction", 2024, arXiv:2411.16170, section on asymmetrical feature decoupling (d1 = d2 / 2).
Limits: d2 = 0 is linear attention, d1 = 0 two convolutions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import divide, wide
from attnjax.core.recurrence.linear import Impl, linear_attend
from attnjax.core.scan.convolution import depthwise
from attnjax.op import Limit, Sizes, Variant, full, grid
from attnjax.typing import Array, Float


class Decoupled(NamedTuple):
    """qkv projects d1 = N H channels; each half of the d2 others has its own kernel."""

    qkv: Float[Array, "3 d1 N H"]
    small: Float[Array, "3 3 d2/2"]
    large: Float[Array, "7 7 d2/2"]


def decoupled_attention(
    x: Float[Array, "B T d1+d2"],
    weights: Decoupled,
    *,
    shape: tuple[int, int],
    impl: Impl = None,
) -> Float[Array, "B T d1+d2"]:
    """On a grid given row by row; each operation costs for its own channels only."""
    (B, T, width), d1 = x.shape, weights.qkv.shape[1]
    y = wide(x)
    q, k, v = jnp.einsum("BTC,pCNH->pBTNH", y[..., :d1], wide(weights.qkv), precision="highest")
    q, k = features.elu1(q), features.elu1(k)
    parts = [linear_attend(q, k, v, normalize=divide, block=None, impl=impl)]
    if width > d1:
        small, large = jnp.split(y[..., d1:].reshape(B, *shape, -1), 2, axis=-1)
        parts += [depthwise(small, weights.small), depthwise(large, weights.large)]
    return jnp.concatenate([p.reshape(B, T, -1) for p in parts if p.size], axis=-1).astype(x.dtype)


def draw(key: Array, z: Sizes) -> Decoupled:
    """Weights for d1 = 4 and d2 = D channels."""
    shapes = ((3, 4, 2, 2), (3, 3, z.D // 2), (7, 7, z.D // 2))
    keys = jax.random.split(key, 3)
    drawn = (0.4 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))
    return Decoupled(*drawn)


def tokens(key: Array, z: Sizes) -> Array:
    return jax.random.normal(key, (z.B, z.T, 4 + z.D))


VARIANT = Variant(
    decoupled_attention,
    rows=(386,),
    paper="Zhou et al., 2024, arXiv:2411.16170",
    inputs={"q": None, "k": None, "v": None, "x": tokens, "weights": draw, "shape": grid},
    engine="linear_attend",
    limits=(
        Limit(
            "x = 0 gives zero",
            given={"x": full("B T 12", 0.0)},
            equals=lambda x, weights, shape: x,
        ),
    ),
    exempt={
        "causal": "reads all tokens, in both directions",
        "unequal": "queries and keys are the cells of one grid",
        "grouped": "takes no q, k, v of several heads",
    },
)
