"""SwiftFormer's efficient additive attention: one query for all tokens multiplies every key.

    q_i, k_i = unit(x_i W_q + b_q), unit(x_i W_k + b_k)
    a = unit of the vector (q_1 . w, .., q_T . w),    g = sum_i a_i q_i
    out_i = ((g * k_i) W_m + b_m + q_i) W_o + b_o,    unit(u) = u / |u|

There are no values, and no scores of pairs: O(T).

Paper: Shaker et al., "SwiftFormer: Efficient Additive Attention for Transformer-based Real-time
Mobile Vision Applications", 2023, arXiv:2303.15446, section 3.2; code: Amshaker/SwiftFormer.
Limits: w = 0 gives g = 0, and each token by itself.
Differs: the scores are q_i . w / sqrt(R) in the paper; the released code divides them by their
length over the tokens, too, in which sqrt(R) cancels.  Weights a may be negative and do not sum to
one.  The convolutions, the residual with its scale and the MLP around it belong to a block.
"""

from typing import Annotated, NamedTuple

from attnjax.core import features
from attnjax.core.numerics import Affine, einsum
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float

Tokens = Float[Array, "B T W"]


class SwiftAdditive(NamedTuple):
    """Learned, of one head of width R; released models have R = W."""

    query: Annotated[Affine, "W R"]
    key: Annotated[Affine, "W R"]
    pool: Float[Array, " R"]
    mix: Annotated[Affine, "R R"]
    out: Annotated[Affine, "R W"]


@on_any_mesh
def swift_additive_attention(x: Tokens, weights: SwiftAdditive) -> Tokens:
    """All tokens, in both directions."""
    w = weights
    q, k = features.cosine(w.query(x)), features.cosine(w.key(x))
    shares = features.cosine(einsum("BTR,R->BT", q, w.pool))
    pooled = einsum("BT,BTR->BR", shares, q)[:, None]
    return w.out(w.mix(pooled * k) + q).astype(x.dtype)


def _no_pool(weights: SwiftAdditive) -> SwiftAdditive:
    return weights._replace(pool=0 * weights.pool)


def _by_itself(x: Tokens, weights: SwiftAdditive) -> Tokens:
    return weights.out(features.cosine(weights.query(x)) + weights.mix.b)


OPS = (
    Op(
        swift_additive_attention,
        papers=(149,),
        reads="all",
        limits=(Limit("w = 0: each token by itself", {"weights": adjusted(_no_pool)}, _by_itself),),
    ),
)
