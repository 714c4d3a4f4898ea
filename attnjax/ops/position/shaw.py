"""Attention with learned vectors for the relative position of key and query.

    r = clip(j - i, -m, m),    s_ij = q_i . (k_j + table_k[r]) / sqrt(H)
    out_i = sum_j softmax_j(s_ij) (v_j + table_v[r])

Paper: Shaw, Uszkoreit and Vaswani, "Self-Attention with Relative Position Representations", 2018,
arXiv:1803.02155, equations 3 and 4.
Limits: zero tables are softmax attention.
"""

import math

from attnjax.core import masks, mods
from attnjax.core.numerics import project
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op, fill
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V


def shaw_relative_attention(
    q: Q,
    k: K,
    v: V,
    table_k: Float[Array, "R H"],
    table_v: Float[Array, "R D"],
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Tables have R = 2m + 1 rows, distances -m .. m, and are shared by all heads.

    Keys meet the table as q . table_k, (B,T,N,R), never as (T,S,H).
    """
    of_distances = project(q, table_k.T) / math.sqrt(q.shape[-1])
    return attend(
        q,
        k,
        mods.relative_values(v, table_v),
        mods=(mods.query_relative(of_distances),),
        mask=mask,
        impl=impl,
    )


OPS = (
    Op(
        shaw_relative_attention,
        papers=(131,),
        limits=(
            Limit(
                "zero tables are softmax attention",
                {"table_k": fill(0.0), "table_v": fill(0.0)},
                multi_head_attention,
            ),
        ),
    ),
)
