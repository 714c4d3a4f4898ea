"""Decoupled channels of CARE: linear attention on some, depthwise convolutions on the others.

    y = [o, conv_3x3(x_2) + b_2, conv_7x7(x_3) + b_3],    x = [x_1, x_2, x_3] along the channels
    o_i = phi(q_i) sum_j phi(k_j) x_1j^T / (phi(q_i) . sum_j phi(k_j)),    q, k = W x_1 + b

with x_2 and x_3 half of the other channels each, and phi = elu + 1.

Paper: Zhou et al., "CARE Transformer: Mobile-Friendly Linear Visual Transformer via Decoupled Dual
Interaction", 2024, arXiv:2411.16170, section on asymmetrical feature decoupling (three parts of the
same width).
Limits: without x_2, x_3 it is linear attention, without x_1 two convolutions.
Differs: in the first two stages of the released models x_1, too, is convolved, by 11 x 1 plus
1 x 11.
"""

from typing import NamedTuple

import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import divide, einsum, wide
from attnjax.core.recurrence.linear import Impl, linear_attend
from attnjax.core.scan.convolution import depthwise
from attnjax.core.sharding import of_whole_text
from attnjax.op import Limit, Op, adjusted, square_grid
from attnjax.typing import Array, Float


class Decoupled(NamedTuple):
    """qk projects N H of W channels; each half of the 2 E others has its own kernel and bias."""

    qk: Float[Array, "2 NH N H"]
    qk_bias: Float[Array, "2 N H"]
    small: Float[Array, "3 3 E"]
    small_bias: Float[Array, " E"]
    large: Float[Array, "7 7 E"]
    large_bias: Float[Array, " E"]


@of_whole_text
def decoupled_attention(
    x: Float[Array, "B T W"],
    weights: Decoupled,
    *,
    shape: tuple[int, int],
    impl: Impl = None,
) -> Float[Array, "B T W"]:
    """On a grid given row by row; the values of attention are the channels x_1 themselves."""
    w = Decoupled(*map(wide, weights))
    B, T, _ = x.shape
    _, d1, N, H = w.qk.shape
    x_1, x_23 = wide(x[..., :d1]), wide(x[..., d1:])
    q, k = einsum("BTC,pCNH->pBTNH", x_1, w.qk) + w.qk_bias[:, None, None]
    q, k = features.elu1(q), features.elu1(k)
    v = x_1.reshape(B, T, N, H)
    attended = linear_attend(q, k, v, normalize=divide, block=None, impl=impl)
    parts = [attended.reshape(B, T, d1)]
    if x_23.shape[-1]:
        x_2, x_3 = jnp.split(x_23.reshape(B, *shape, x_23.shape[-1]), 2, axis=-1)
        local = depthwise(x_2, w.small, w.small_bias), depthwise(x_3, w.large, w.large_bias)
        parts += [part.reshape(B, T, part.shape[-1]) for part in local]
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)


def _constant_weights(w: Decoupled) -> Decoupled:
    """Queries that see all keys alike, and no convolutions."""
    return w._replace(qk=0 * w.qk, small=0 * w.small, large=0 * w.large)


def _mean_and_biases(x: Float[Array, "B T W"], weights: Decoupled) -> Float[Array, "B T W"]:
    d1 = weights.qk.shape[1]
    mean = jnp.broadcast_to(x[..., :d1].mean(1, keepdims=True), (*x.shape[:2], d1))
    biases = jnp.concatenate([weights.small_bias, weights.large_bias])
    return jnp.concatenate([mean, jnp.broadcast_to(biases, (*x.shape[:2], len(biases)))], -1)


SIZES = {"N": 2, "H": 2, "NH": 4, "E": 4, "W": 12}
OPS = (
    Op(
        decoupled_attention,
        papers=(386,),
        reads="all",
        draw={"shape": square_grid},
        sizes=SIZES,
        limits=(
            Limit(
                "constant q, k and no kernels: the mean of x_1, and biases",
                {"weights": adjusted(_constant_weights)},
                _mean_and_biases,
            ),
        ),
    ),
)
