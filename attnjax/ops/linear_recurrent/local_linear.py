"""ReLU linear attention and a local concentration module: two depthwise convolutions on a grid.

    y_i = relu(q_i) sum_j relu(k_j) v_j^T / (relu(q_i) . sum_j relu(k_j))
    o = y + conv_2(scale * gelu(conv_1(y)) + shift)

Paper: Zheng, "The Linear Attention Resurrection in Vision Transformer", 2025, arXiv:2501.16182.
Limits: conv_2 = 0 is linear attention with ReLU features.
Differs: the paper puts the output projection and a layer norm between y and the module, which
belong to a layer, as do the biases of the convolutions; scale and shift are its batch norm's.  Its
clamp of the divisor at 100 is left out: weights of a query sum to one.
"""

from typing import NamedTuple

import jax

from attnjax.core import features
from attnjax.core.numerics import divide, wide
from attnjax.core.recurrence.linear import Impl, linear_attend
from attnjax.core.scan.convolution import depthwise
from attnjax.op import Limit, Op, adjusted, square_grid
from attnjax.typing import Array, Float, K, Out, Q, TokenK, TokenV, V


class LocalConcentration(NamedTuple):
    """Weights for each channel of each head; kernels are 7 x 7 in the paper."""

    first: Float[Array, "7 7 N D"]
    scale: Float[Array, "N D"]
    shift: Float[Array, "N D"]
    second: Float[Array, "7 7 N D"]


def local_linear_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    local: LocalConcentration,
    *,
    shape: tuple[int, int],
    impl: Impl = None,
) -> Out:
    """On a grid given row by row, T = S = rows * columns; all tokens, in both directions."""
    y = _linear(wide(q), wide(k), wide(v), impl)
    first, scale, shift, second = map(_channels, local)
    grid = _channels(y).reshape(len(y), *shape, -1)
    hidden = jax.nn.gelu(depthwise(grid, first), approximate=False)
    near = depthwise(scale * hidden + shift, second)
    return (y + near.reshape(y.shape)).astype(v.dtype)


def _channels(x: Float[Array, "*X N D"]) -> Float[Array, "*X ND"]:
    """The channels of all heads in a row, wide."""
    return wide(x).reshape(*x.shape[:-2], -1)


def _linear(q: Q, k: K, v: V, impl: Impl = None) -> Out:
    q, k = features.relu(q), features.relu(k)
    return linear_attend(q, k, v, normalize=divide, block=None, impl=impl)


def _closed(local: LocalConcentration) -> LocalConcentration:
    return local._replace(second=0 * local.second)


OPS = (
    Op(
        local_linear_attention,
        papers=(37,),
        reads="all",
        draw={"shape": square_grid},
        limits=(
            Limit(
                "conv_2 = 0 is linear attention with ReLU features",
                {"local": adjusted(_closed)},
                _linear,
            ),
        ),
    ),
)
