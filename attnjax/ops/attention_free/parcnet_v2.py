"""ParCNetV2's bifurcate gate: a product with convolutions whose kernels cover the whole image.

    g = gelu(x W_g + b_g),    v = x W_v + b_v
    out = (v * (columns(rows(g)) + local(g))) W

with depthwise convolutions: `rows` along the rows of an image of T rows, with 2T - 1 taps,
`columns` along its columns, `local` k x k.  Each cell sees all others, and where it stands by
the zeros beyond the border.

Paper: Xu et al., "ParCNetV2: Oversized Kernel with Enhanced Attention", 2022, arXiv:2211.07157,
section 3; code: XuRuihan/ParCNetV2.
Limits: zero kernels give zero; without the long ones and with an identity as the local one it is
the paper's channel mixer, (v * g) W.
Differs: W_v and W_g are one map in the released code, whose kernels have 111, 55, 27 and 13 taps
for images of 56, 28, 14 and 7 rows, and 7 x 7 taps; norms and residuals belong to a block.
"""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.nn import gelu

from attnjax.core.numerics import Affine, matmul, wide
from attnjax.core.scan.convolution import depthwise
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float

Image = Float[Array, "B T columns W"]


class Oversized(NamedTuple):
    """Learned; numbers of taps are odd."""

    gate: Annotated[Affine, "W E"]
    value: Annotated[Affine, "W E"]
    rows: Float[Array, "tall E"]
    columns: Float[Array, "broad E"]
    local: Float[Array, "k k E"]
    out: Float[Array, "E W"]


@on_any_mesh
def oversized_gate(x: Image, weights: Oversized) -> Image:
    """For images of another size than that trained on, kernels are `stretched`."""
    w = weights
    gate = gelu(w.gate(x), approximate=False)
    far = depthwise(depthwise(gate, w.rows[:, None]), w.columns[None])
    near = depthwise(gate, w.local)
    return matmul(w.value(x) * (far + near), w.out).astype(x.dtype)


def stretched(kernel: Float[Array, "k E"], taps: int) -> Float[Array, "taps E"]:
    """A kernel of another length, linear between its taps, its first and last tap kept."""
    at = np.linspace(0.0, len(kernel) - 1.0, taps)
    below = np.floor(at).astype(int)
    above = np.minimum(below + 1, len(kernel) - 1)
    share = jnp.asarray((at - below)[:, None], wide(kernel).dtype)
    return ((1 - share) * kernel[below] + share * kernel[above]).astype(kernel.dtype)


def _no_kernels(weights: Oversized) -> Oversized:
    w = weights
    return w._replace(rows=0 * w.rows, columns=0 * w.columns, local=0 * w.local)


def _zeros(x: Image) -> Image:
    return jnp.zeros_like(x)


def _unmoved(weights: Oversized) -> Oversized:
    w = _no_kernels(weights)
    middle = len(w.local) // 2
    return w._replace(local=jnp.zeros_like(w.local).at[middle, middle].set(1.0))


def _channel_mixer(x: Image, weights: Oversized) -> Image:
    w = weights
    return matmul(w.value(x) * gelu(w.gate(x), approximate=False), w.out)


OPS = (
    Op(
        oversized_gate,
        papers=(239,),
        reads="all",
        sizes={"columns": 3, "E": 6, "tall": 17, "broad": 5, "k": 3},
        limits=(
            Limit("zero kernels give zero", {"weights": adjusted(_no_kernels)}, _zeros),
            Limit("no long kernels: a gated MLP", {"weights": adjusted(_unmoved)}, _channel_mixer),
        ),
    ),
)
