"""Grouped queries whose shared keys and values are weighted sums of heads.

    k_g = sum_{n in group g} w_n * K_n,    v_g = sum_{n in group g} u_n * V_n
    out_i,n = sum_j softmax_j(q_i,n . k_j,g(n) / sqrt(H)) v_j,g(n)

w_n is a number or a vector along the width of a head. Fine-tuning a model of N key heads learns w
and u; then they are folded into the projections W_K and W_V, and only K heads are left.

Paper: Chinnakonduru and Mohapatra, "Weighted Grouped Query Attention in Transformers", 2024,
arXiv:2407.10855, section 3; code: Athe-kunal/Enhancement-in-GQA.
Limits: weights K/N are grouped queries by mean pooling; groups of one with weights 1 are
multi-head attention.
Differs: the models are T5's, whose scores are not divided by sqrt(H): multiply q by it.
"""

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import aligned, clean, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, by_sizes, fill
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, Out, Q

Heads = Float[Array, "... N H"]


@on_any_mesh
def weighted_gqa(
    q: Q,
    k: Float[Array, "B S N H"],
    v: Float[Array, "B S N D"],
    key_weights: Float[Array, "N X"],
    value_weights: Float[Array, "N Y"],
    *,
    groups: int,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Softmax attention to `groups` weighted sums of key and value heads.

    Weights are (N,1), a number for each head, which the paper starts at groups / N; or (N,H) and
    (N,D), one for each of its channels (COLWGQA).
    """
    shared = (
        fold_heads(x, weights, groups).astype(x.dtype)
        for x, weights in ((k, key_weights), (v, value_weights))
    )
    k, v = shared
    return attend(q, k, v, mask=mask, impl=impl)


def fold_heads(x: Heads, weights: Array, groups: int) -> Float[Array, "... K H"]:
    """Weighted sums of neighboring heads, (...,K,H) with K = groups, wide.

    Of projected heads (B,S,N,H), or of the projection (W,N,H) itself, which a trained model then
    keeps: both give the same keys.  `weights` broadcast to x's last axes: (N,1) and (N,H), or
    (W,N,1), a vector along the model's width (ROWWGQA).

    Raises ValueError where groups is no divisor of N, or weights do not fit.
    """
    N = x.shape[-2]
    fits = all(a in (1, b) for a, b in zip(weights.shape[::-1], x.shape[::-1], strict=False))
    if groups < 1 or N % groups or weights.ndim < 2 or weights.shape[-2] != N or not fits:
        raise ValueError(
            f"groups, weights: {groups}, {weights.shape}; expected a divisor of N = {N} and "
            f"(N,1) or (N,{x.shape[-1]})"
        )
    x, bad = clean(wide(x))
    parts = x * aligned(weights, x) + bad[..., None]
    return parts.reshape(*x.shape[:-2], groups, N // groups, x.shape[-1]).sum(-2)


def _pooled(q: Q, k: Q, v: Q, groups: int) -> Out:
    means = (x.reshape(*x.shape[:2], groups, -1, x.shape[-1]).mean(3) for x in (k, v))
    k, v = means
    return multi_head_attention(q, k, v)


_pooling = by_sizes(lambda z: jnp.full((z["N"], 1), z["K"] / z["N"]))

OPS = (
    Op(
        weighted_gqa,
        papers=(111,),
        sizes={"X": 8, "Y": 1},
        draw={"groups": by_sizes(lambda z: z["K"])},
        limits=(
            Limit(
                "weights K/N pool the heads of a group",
                {"key_weights": _pooling, "value_weights": _pooling},
                _pooled,
            ),
            Limit(
                "groups of one are multi-head attention",
                {
                    "key_weights": fill(1.0),
                    "value_weights": fill(1.0),
                    "groups": by_sizes(lambda z: z["N"]),
                },
                multi_head_attention,
            ),
        ),
    ),
)
