"""Single-head attention on a part of the channels; the others wait for the output projection.

    x = [x_a; x_r] along the channels, x_a the first P
    y = group_norm(x_a), one group: over all tokens and channels of an image
    q, k = y W_q + b_q, y W_k + b_k  (width R),    v = y W_v + b_v  (width P)
    out = relu([softmax(q k^T / sqrt(R)) v; x_r]) W_o + b_o

Positions are told by convolutions before it. A residual is added by the block.

Paper: Yun and Ro, "SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", 2024,
arXiv:2401.16456, section 4; code: ysj9909/SHViT.
Limits: values of zero leave relu(x_r) to the output projection.
Differs: the code's maps have a batch normalization each in place of a bias; `Affine` holds both as
they are after training. It starts the last one's scale at zero.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core.numerics import Affine, aligned, layer_norm, matmul, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float


class PartialHead(NamedTuple):
    """The norm's scale and shift, and maps between widths P (attended), R (queries) and W (all)."""

    scale: Float[Array, " P"]
    shift: Float[Array, " P"]
    q: Annotated[Affine, "P R"]
    k: Annotated[Affine, "P R"]
    v: Annotated[Affine, "P P"]
    out: Annotated[Affine, "W W"]


@of_whole_text
@on_any_mesh
def partial_head_attention(
    x: Float[Array, "B T W"], weights: PartialHead, *, impl: Impl = None
) -> Float[Array, "B T W"]:
    """Attention of one head between all tokens, over the first P of W channels."""
    w = weights
    P = len(w.scale)
    attended, rest = wide(x[..., :P]), wide(x[..., P:])
    together = attended.reshape(len(x), x.shape[1] * P)
    normed = layer_norm(together, 1e-5).reshape(attended.shape)
    normed = normed * aligned(w.scale, normed) + aligned(w.shift, normed)
    q, k, v = (f(normed)[:, :, None] for f in (w.q, w.k, w.v))
    read = attend(q, k, v, impl=impl)[:, :, 0]
    out = w.out(jax.nn.relu(jnp.concatenate([read, rest], axis=-1)))
    return out.astype(x.dtype)


def _without_values(weights: PartialHead) -> PartialHead:
    return weights._replace(v=Affine(*(0 * x for x in weights.v)))


def _rest(x: Array, weights: PartialHead) -> Array:
    P = len(weights.scale)
    return matmul(jax.nn.relu(x[..., P:]), weights.out.w[P:]) + weights.out.b


OPS = (
    Op(
        partial_head_attention,
        papers=(48,),
        reads="all",
        sizes={"P": 5, "R": 3},
        limits=(
            Limit(
                "values of zero leave the other channels",
                {"weights": adjusted(_without_values)},
                _rest,
            ),
        ),
    ),
)
