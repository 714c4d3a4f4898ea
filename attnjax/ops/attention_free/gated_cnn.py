"""The gated CNN block of MambaOut: a Mamba block for images without its state space model.

    g = norm(x) W_g + b_g,    v = norm(x) W_v + b_v,    (i, c) = v, c its last channels
    out = x + (gelu(g) * [i; conv(c)]) W + b,    conv depthwise

Of E channels inside, 8/3 of the width W, released models convolve W, by 7 x 7; W_g and W_v are
one map there.  A state space model behind the convolution, `selective_ssm`, makes it Mamba's
block.

Paper: Yu and Wang, "MambaOut: Do We Really Need Mamba for Vision?", 2024, arXiv:2405.07992,
section 3.3; code: yuweihao/MambaOut.
Limits: a gate of zeros leaves x + b; a kernel that is the identity leaves a gated MLP of each
cell.
"""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jax.nn import gelu

from attnjax.core.numerics import Affine, wide
from attnjax.core.scan.convolution import depthwise
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.ops.attention_free.metaformer import Norm
from attnjax.typing import Array, Float

Image = Float[Array, "B T columns W"]


class GatedCNN(NamedTuple):
    """Learned; the last C of the E channels of `value` are convolved, k x k, k odd."""

    norm: Norm
    gate: Annotated[Affine, "W E"]
    value: Annotated[Affine, "W E"]
    kernel: Float[Array, "k k C"]
    kernel_bias: Float[Array, " C"]
    out: Annotated[Affine, "E W"]


@on_any_mesh
def gated_cnn_block(x: Image, weights: GatedCNN) -> Image:
    """With its norm and its residual; ValueError where more channels are convolved than are."""
    w, C, E = weights, weights.kernel.shape[-1], weights.value.w.shape[-1]
    if C > E:
        raise ValueError(f"gated_cnn_block: kernel has C = {C} channels, expected at most E = {E}")
    normed = w.norm.of_tokens(x, 1e-6)
    value = w.value(normed)
    convolved = depthwise(value[..., E - C :], w.kernel, w.kernel_bias)
    mixed = jnp.concatenate([value[..., : E - C], convolved], axis=-1)
    gate = gelu(w.gate(normed), approximate=False)
    return (wide(x) + w.out(gate * mixed)).astype(x.dtype)


def _closed(weights: GatedCNN) -> GatedCNN:
    return weights._replace(gate=Affine(*(0 * part for part in weights.gate)))


def _bias_added(x: Image, weights: GatedCNN) -> Image:
    return x + weights.out.b


def _unmoved(weights: GatedCNN) -> GatedCNN:
    """The kernel that keeps every cell where it is."""
    kernel = jnp.zeros_like(weights.kernel)
    middle = len(kernel) // 2
    return weights._replace(
        kernel=kernel.at[middle, middle].set(1.0), kernel_bias=0 * weights.kernel_bias
    )


def _gated_mlp(x: Image, weights: GatedCNN) -> Image:
    w = weights
    normed = w.norm.of_tokens(x, 1e-6)
    return x + w.out(gelu(w.gate(normed), approximate=False) * w.value(normed))


OPS = (
    Op(
        gated_cnn_block,
        papers=(356,),
        reads="all",
        sizes={"columns": 5, "E": 6, "C": 4, "k": 3},
        limits=(
            Limit("a gate of zeros leaves x + b", {"weights": adjusted(_closed)}, _bias_added),
            Limit("an identity kernel: a gated MLP", {"weights": adjusted(_unmoved)}, _gated_mlp),
        ),
    ),
)
