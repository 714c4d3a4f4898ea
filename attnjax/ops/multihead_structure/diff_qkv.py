"""DiffQKV attention: few and narrow keys, more values, for what each of them costs.

    out_i,n = sum_j softmax_j(q_i,n . W k_j,g / sqrt(H)) v_j,f,    g = n K / N, f = n F / N

There are K key heads of width R, F value heads and N query heads, K | F | N. A cache holds
K R + F D numbers a token: K = 4 and F = 16 of N = 32 are 37.5% less than with 16 of both.

Paper: Lin et al., "Sigma: Differential Rescaling of Query, Key and Value for Efficient Language
Models", 2025, arXiv:2501.13629, section 2.
Limits: K = F = N and W = 1 are multi-head attention, K = F grouped queries.
Differs: no code was found. "Augmented Q", a wider hidden layer in front of the queries, belongs to
a layer. To fetch the values of few keys, select them: `attend(..., blocks=select.top_k(...))` gives
the weights that are left a sum of one again; whether the paper does, we do not know.
"""

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import project
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, Out, Q


@on_any_mesh
def diff_qkv_attention(
    q: Q,
    k: Float[Array, "B S K R"],
    v: Float[Array, "B S F D"],
    expand: Float[Array, "R H"] | None = None,
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Softmax attention with more value heads than key heads.

    `expand` is W, which takes keys back to the width of queries after the cache; None where they
    have it. q meets it as W^T q, so that keys stay narrow.
    """
    scale = q.shape[-1] ** -0.5
    if expand is not None:
        q = project(q, jnp.swapaxes(expand, 0, 1)).astype(q.dtype)
    return attend(q, k, v, mask=mask, scale=scale, impl=impl)


OPS = (
    Op(
        diff_qkv_attention,
        papers=(314,),
        sizes={"F": 4, "R": 6},
        draw={"expand": Draw(lambda slot: slot.normal("R H"))},
        limits=(
            Limit(
                "as many values as keys, as wide as queries: grouped queries",
                {
                    "k": Draw(lambda slot: slot.normal("B S K H")),
                    "v": Draw(lambda slot: slot.normal("B S K D")),
                    "expand": None,
                },
                multi_head_attention,
            ),
        ),
        exempt={"grouped": "values have heads of their own, so keys alone cannot be repeated"},
    ),
)
