"""ReLU linear attention with a floor under its divisor, and a local concentration module.

    attention      y_i = t relu(q_i) sum_j relu(k_j) v_j^T / max(relu(q_i) . sum_j relu(k_j), least)
    concentration  conv_2(scale * gelu(conv_1(x) + bias_1) + shift) + bias_2, depthwise on a grid

with a temperature t of each head.

Paper: Zheng, "The Linear Attention Resurrection in Vision Transformer", 2025, arXiv:2501.16182.
Limits: temperature 1 and least = 0 are linear attention with ReLU features.
Differs: the block around them, x + W y and then x + concentration(norm(x)), belongs to a layer;
scale and shift are those of the module's batch norm.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import divide, wide
from attnjax.core.recurrence.linear import Impl, linear_attend
from attnjax.core.scan.convolution import depthwise
from attnjax.op import Limit, Op, adjusted, fill, square_grid
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


def local_linear_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    temperature: Float[Array, " N"],
    *,
    least: float = 100.0,
    impl: Impl = None,
) -> Out:
    """All tokens, in both directions; released temperatures begin at 1 / sqrt(H).

    A query whose products with all keys sum to less than `least` has weights that sum to less
    than its temperature.
    """

    def normalize(values: Array, total: Array) -> Array:
        return divide(values, jnp.maximum(total, least))

    q, k = features.relu(wide(q)), features.relu(wide(k))
    y = linear_attend(q, k, wide(v), normalize=normalize, block=None, impl=impl)
    return (y * wide(temperature)[None, None, :, None]).astype(v.dtype)


class LocalConcentration(NamedTuple):
    """Weights for each channel; kernels are 7 x 7 in the paper."""

    first: Float[Array, "7 7 W"]
    first_bias: Float[Array, " W"]
    scale: Float[Array, " W"]
    shift: Float[Array, " W"]
    second: Float[Array, "7 7 W"]
    second_bias: Float[Array, " W"]


def local_concentration(
    x: Float[Array, "B T W"], local: LocalConcentration, *, shape: tuple[int, int]
) -> Float[Array, "B T W"]:
    """On a grid given row by row, T = rows * columns; without the residual."""
    w = LocalConcentration(*map(wide, local))
    hidden = depthwise(x.reshape(len(x), *shape, x.shape[-1]), w.first, w.first_bias)
    scale, shift = w.scale[None, None, None], w.shift[None, None, None]
    hidden = scale * jax.nn.gelu(hidden, approximate=False) + shift
    return depthwise(hidden, w.second, w.second_bias).reshape(x.shape).astype(x.dtype)


def _linear(q: Q, k: TokenK, v: TokenV) -> Out:
    q, k = features.relu(q), features.relu(k)
    return linear_attend(q, k, v, normalize=divide, block=None)


def _second_bias_alone(local: LocalConcentration) -> LocalConcentration:
    return local._replace(second=0 * local.second)


def _second_bias(x: Float[Array, "B T W"], local: LocalConcentration) -> Float[Array, "B T W"]:
    return jnp.broadcast_to(local.second_bias, x.shape)


OPS = (
    Op(
        local_linear_attention,
        papers=(37,),
        reads="all",
        draw={"least": 9.0},
        limits=(
            Limit(
                "temperature 1 and least = 0 are linear attention with ReLU features",
                {"temperature": fill(1.0), "least": 0.0},
                _linear,
            ),
        ),
    ),
    Op(
        local_concentration,
        papers=(37,),
        reads="all",
        draw={"shape": square_grid},
        limits=(
            Limit(
                "conv_2 = 0 leaves its bias",
                {"local": adjusted(_second_bias_alone)},
                _second_bias,
            ),
        ),
    ),
)
