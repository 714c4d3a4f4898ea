"""DualToken-ViT: a few global tokens carry places and all of an image from stage to stage.

    s   = means of x over the grid of the M global tokens
    a   = softmax(s Q (s K)^T / sqrt(H)) s V,  per head, and projected
    g'  = m * g + (1 - m) * a,  m = sigmoid(mix), a number for each channel     (fused_globals)
    out = (conv(x) + softmax(x Q (g' K)^T / sqrt(H)) g' V, projected) W + b      (dual_token_mixer)

with conv depthwise; out joins x, and g' goes on to the next stage behind a residual MLP.  Linear in
the cells of x.

Paper: Chu et al., "DualToken-ViT: Position-aware Efficient Vision Transformer with Dual Token
Fusion", 2023, arXiv:2309.12424.
Limits: a mix of infinity keeps the global tokens; without a convolution, and with the cells
themselves as global tokens, it is softmax attention among them.
Differs: no code was found: means in one step, where the paper shrinks a map by halves, and both
fusions are our reading.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core.numerics import Affine, aligned, einsum, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.scan.convolution import depthwise
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, adjusted, fill, square_grid
from attnjax.ops.local_structured.grids import adaptive_means
from attnjax.typing import Array, Float

Tokens = Float[Array, "B T W"]
Globals = Float[Array, "B M W"]


class Maps(NamedTuple):
    """Of one attention: to queries, keys and values of N heads, and back to the width."""

    q: Float[Array, "W N H"]
    k: Float[Array, "W N H"]
    v: Float[Array, "W N H"]
    out: Float[Array, "N H W"]

    def __call__(self, x: Array, y: Array, impl: Impl) -> Array:
        """What x reads of y, wide."""
        q, k, v = (
            einsum("BTW,WNH->BTNH", z, w)
            for z, w in zip((x, y, y), (self.q, self.k, self.v), strict=True)
        )
        return einsum("BTNH,NHW->BTW", attend(q, k, v, impl=impl), self.out)


@of_whole_text
@on_any_mesh
def fused_globals(
    g: Globals,
    x: Tokens,
    maps: Maps,
    mix: Float[Array, " W"],
    *,
    shape: Sequence[int],
    grid: Sequence[int],
    impl: Impl = None,
) -> Globals:
    """The global tokens, those of the image mixed in: M = prod(grid), T = prod(shape)."""
    means = adaptive_means(x, shape, grid)
    if means.shape != g.shape:
        raise ValueError(f"grid: {tuple(grid)}; expected M = {g.shape[1]} cells")
    fresh = maps(means, means, impl)
    m = aligned(jax.nn.sigmoid(wide(mix)), fresh)
    return (m * wide(g) + (1 - m) * fresh).astype(g.dtype)


@of_whole_text
@on_any_mesh
def dual_token_mixer(
    x: Tokens,
    g: Globals,
    kernel: Float[Array, "k k W"],
    maps: Maps,
    out: Annotated[Affine, "W W"],
    *,
    shape: Sequence[int],
    impl: Impl = None,
) -> Tokens:
    """What cells get of their neighbors and of the global tokens: see the module's first lines."""
    image = x.reshape(len(x), *shape, x.shape[2])
    near = depthwise(image, kernel).reshape(x.shape)
    return out(near + maps(x, g, impl)).astype(x.dtype)


def _kept(g: Globals) -> Globals:
    return g


def _mean_of_values(g: Globals, maps: Maps, out: Affine, x: Tokens) -> Tokens:
    read = einsum("BNH,NHW->BW", einsum("BMW,WNH->BMNH", g, maps.v).mean(1), maps.out)
    return jnp.broadcast_to(out(read)[:, None], x.shape)


_blind = adjusted(lambda maps: maps._replace(q=0.0 * maps.q))

OPS = (
    Op(
        fused_globals,
        papers=(381,),
        reads="all",
        sizes={"T": 9, "M": 4},
        draw={"shape": square_grid, "grid": (2, 2)},
        limits=(Limit("a mix of infinity", {"mix": fill(60.0)}, _kept),),
        exempt={
            "future": "its tokens are those of a grid of means, each of which reads all cells",
        },
    ),
    Op(
        dual_token_mixer,
        papers=(381,),
        reads="all",
        sizes={"k": 3},
        draw={"shape": square_grid},
        limits=(
            Limit(
                "queries of zeros, no convolution: the mean of the global values",
                {"maps": _blind, "kernel": fill(0.0)},
                _mean_of_values,
            ),
        ),
    ),
)
