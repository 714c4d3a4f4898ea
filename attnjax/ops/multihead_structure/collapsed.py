"""Attention with one matrix in place of the projections to queries and keys, and none for values.

    out_n = softmax(x W_n x^T scale) x,    W_n (W,W) of head n
    symmetric: W_n = S_n S_n^T, half of the weights: s_ij = s_ji, and s_ii >= 0

A block of it is x + out of norm(x), and may do without a feed-forward layer.

Paper: Bermeitinger et al., "Reducing the Transformer Architecture to a Minimum", 2024,
arXiv:2410.13732.
Limits: W = W_Q W_K^T at scale 1/sqrt(H) is softmax attention to x itself.
Differs: no code was found; the scale where none is given, 1/sqrt(W), is our reading.
"""

from attnjax.core.numerics import einsum, project, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op
from attnjax.typing import Array, Float


@on_any_mesh
def collapsed_attention(
    x: Float[Array, "B T W"],
    weights: Float[Array, "W N W"],
    *,
    scale: float | None = None,
    impl: Impl = None,
) -> Float[Array, "B T N W"]:
    """N mixtures of tokens for each token, all keys and values x; `scale` is 1/sqrt(W) if None."""
    W, N, _ = weights.shape
    q = project(x, weights.reshape(W, N * W)).reshape(*x.shape[:2], N, W)
    tokens = wide(x)[:, :, None]
    return attend(q, tokens, tokens, scale=scale, impl=impl).astype(x.dtype)


def symmetric_weights(s: Float[Array, "W N R"]) -> Float[Array, "W N W"]:
    """W_n = S_n S_n^T, wide."""
    return einsum("ANR,BNR->ANB", s, s)


def _mean(x: Array) -> Array:
    return x.mean(1, keepdims=True)[:, :, None] + 0.0 * x[:, :, None].repeat(4, 2)


OPS = (
    Op(
        collapsed_attention,
        papers=(54,),
        reads="all",
        sizes={"N": 4},
        limits=(
            Limit(
                "W = 0 is the mean of the tokens",
                {"weights": Draw(lambda slot: 0.0 * slot.normal("W N W"))},
                _mean,
            ),
        ),
    ),
)
