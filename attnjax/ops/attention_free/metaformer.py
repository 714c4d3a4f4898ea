"""PoolFormer's mixer, which has no parameters, and the MetaFormer block, which takes any mixer.

    pool(x)  = mean of the cells of the grid within size / 2 of a cell on each axis, minus x
    block(x) = u + s_2 * mlp(norm_2(u)),    u = x + s_1 * mixer(norm_1(x))
    mlp(u)   = gelu(u W_1 + b_1) W_2 + b_2

with scales s of each channel, and norms over all cells and channels of an example.  What pool
subtracts the residual adds again.  Other mixers that the paper compares are the identity,
`lambda x: x`, and a fixed matrix R over the cells, softmax of uniform numbers, or a depthwise
convolution, `core.scan.convolution.depthwise`; attention with its projections is one, too.

Paper: Yu et al., "MetaFormer Is Actually What You Need for Vision", 2022, arXiv:2111.11418,
section 3; code: sail-sg/poolformer.
Limits: a window of one cell gives zero; a mixer that gives zero leaves the MLP.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.nn import gelu

from attnjax.core.numerics import Affine, aligned, layer_norm, wide
from attnjax.core.scan.convolution import depthwise
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op
from attnjax.typing import Array, Float

Grid = Float[Array, "B T *more W"]  # cells on one axis or more


@on_any_mesh
def pool_mixer(x: Grid, *, size: int = 3) -> Grid:
    """Cells beyond the grid do not count; ValueError for a size that is not odd."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"pool_mixer: size is {size}, expected an odd number")
    window = jnp.ones((size,) * (x.ndim - 2) + (1,))
    count = depthwise(jnp.ones((1, *x.shape[1:-1], 1)), window)
    return (depthwise(x, window) / count - wide(x)).astype(x.dtype)


class Norm(NamedTuple):
    """A norm with its learned scale and shift, by channel."""

    scale: Float[Array, " W"]
    shift: Float[Array, " W"]

    def of_tokens(self, x: Array, eps: float = 1e-5) -> Array:
        """Layer norm: each token of x (...,W) by itself, wide."""
        return self.rescaled(layer_norm(wide(x), eps))

    def of_examples(self, x: Array, eps: float = 1e-5) -> Array:
        """Group norm with one group: all cells and channels of an example of x (B,...,W), wide."""
        each = tuple(range(1, x.ndim))
        centered = wide(x) - wide(x).mean(each, keepdims=True)
        return self.rescaled(
            centered * lax.rsqrt(jnp.square(centered).mean(each, keepdims=True) + eps)
        )

    def rescaled(self, x: Array) -> Array:
        """Scale and shift alone: what a batch norm is after training."""
        return x * aligned(self.scale, x) + aligned(self.shift, x)


class MetaFormer(NamedTuple):
    """Learned; the scales of both branches are released as 1e-5 at first, E is 4 W."""

    mixer_norm: Norm
    mixer_scale: Float[Array, " W"]
    mlp_norm: Norm
    mlp_scale: Float[Array, " W"]
    up: Annotated[Affine, "W E"]
    down: Annotated[Affine, "E W"]


@on_any_mesh
def metaformer_block(x: Grid, weights: MetaFormer, *, mixer: Callable[[Grid], Grid]) -> Grid:
    """The mixer gets x, normalized and wide, and gives an array of its shape."""
    w = weights
    mixed = mixer(w.mixer_norm.of_examples(x))
    u = wide(x) + aligned(w.mixer_scale, mixed) * mixed
    hidden = gelu(w.up(w.mlp_norm.of_examples(u)), approximate=False)
    return (u + aligned(w.mlp_scale, u) * w.down(hidden)).astype(x.dtype)


def _zeros(x: Grid) -> Grid:
    return jnp.zeros_like(x)


def _mlp_alone(x: Grid, weights: MetaFormer) -> Grid:
    w = weights
    hidden = gelu(w.up(w.mlp_norm.of_examples(x)), approximate=False)
    return x + w.mlp_scale * w.down(hidden)


OPS = (
    Op(
        pool_mixer,
        papers=(332,),
        reads="all",
        sizes={"more": 5},
        limits=(Limit("a window of one cell gives zero", {"size": 1}, _zeros),),
    ),
    Op(
        metaformer_block,
        papers=(332,),
        reads="all",
        draw={"mixer": pool_mixer},
        sizes={"more": 3, "E": 6},
        limits=(Limit("a mixer that gives zero leaves the MLP", {"mixer": _zeros}, _mlp_alone),),
    ),
)
