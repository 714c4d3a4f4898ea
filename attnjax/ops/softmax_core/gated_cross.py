"""Gated cross-attention: one head reads a text, and a gate lets its result replace the input.

    y = layer_norm(x),    u = sigmoid(y W_u),    r = silu(y W_r),    q = y W_q,    k = c W_k
    o_i = sum_j softmax_j(q_i . k_j / sqrt(Z) + bias[j - i]) silu(c W_v)_j
    out = x + u (silu((r o) W_h) - x)

Paper: Song et al., "TacoLM: GaTed Attention Equipped Codec Language Model are Efficient Zero-Shot
Text to Speech Synthesizers", 2024, arXiv:2406.15752; the module is of Ma et al., "Mega", 2022,
arXiv:2209.10655. Its self-attention is `mega` with a softmax.
Limits: u = 0 returns x.
Differs: gain and shift of the norm are folded into the maps after it. The released module can also
take relu(s)^2 or Mega's f for softmax, of q . k over the number of tokens of the text, and a
rotary table for the bias, which the released model has; dropout belongs to a layer.
"""

import math
from typing import Annotated, NamedTuple

from jax.nn import sigmoid, silu

from attnjax.core import features, masks
from attnjax.core.mods import relative_bias
from attnjax.core.numerics import Affine, clean, layer_norm, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float

X = Float[Array, "B T W"]


class CrossWeights(NamedTuple):
    """Maps between the widths W of the model and Z of queries and keys."""

    update: Annotated[Affine, "W W"]
    reset: Annotated[Affine, "W W"]
    q: Annotated[Affine, "W Z"]
    k: Annotated[Affine, "W Z"]
    v: Annotated[Affine, "W W"]
    h: Annotated[Affine, "W W"]
    bias: Float[Array, " R"]  # of the relative positions, see relative_bias


@on_any_mesh
def gated_cross_attention_unit(
    x: X,
    c: Float[Array, "B S W"],
    weights: CrossWeights,
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> X:
    """x of the decoder reads c of the text; `masks.lengths(None, n)` hides the text's padding."""
    w, head = weights, lambda y: y[:, :, None]
    y = layer_norm(wide(x), eps=1e-5)
    text, bad = clean(wide(c))  # a NaN of the padding must not reach the gradients of the maps
    o = attend(
        head(w.q(y)),
        head(w.k(text) + bad[..., None]),
        head(silu(w.v(text)) + bad[..., None]),
        mods=(relative_bias(w.bias),),
        mask=mask,
        scale=1.0 / math.sqrt(w.q.w.shape[1]),
        impl=impl,
    )[:, :, 0]
    state = silu(w.h(silu(w.reset(y)) * o))
    return (wide(x) + sigmoid(w.update(y)) * (state - wide(x))).astype(x.dtype)


def _closed(weights: CrossWeights) -> CrossWeights:
    return weights._replace(update=weights.update._replace(b=weights.update.b - 100.0))


_RESIDUAL = "the residual passes x on wherever the text is hidden"

OPS = (
    Op(
        gated_cross_attention_unit,
        papers=(279,),
        reads="all",
        sizes={"Z": 6},
        limits=(Limit("u = 0 returns x", {"weights": adjusted(_closed)}, features.identity),),
        exempt={"padding": _RESIDUAL, "empty_rows": _RESIDUAL},
    ),
)
