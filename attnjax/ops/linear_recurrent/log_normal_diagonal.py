"""LLN+Diag: the mean of linear log-normal attention and of softmax attention inside blocks.

    o_i = (LLN_i + sum_j softmax_j(q_i . k_j / sqrt(H)) v_j) / 2,    j in the block of i

Paper: Nahshan, Kampeas and Haleva, "Linear Log-Normal Attention with Unbiased Concentration", 2023,
arXiv:2311.13541.
Limits: one block as long as the sequence gives the mean of LLN and softmax attention; blocks of one
token the mean of LLN and v.
"""

import numpy as np

from attnjax.core import masks
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import attend
from attnjax.core.recurrence.linear import Impl
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.log_normal import log_normal_attention_full
from attnjax.typing import Array, Float, K, Out, Q, V


@of_whole_text
@on_any_mesh
def log_normal_diagonal_attention(
    q: Q,
    k: K,
    v: V,
    alpha: float | Float[Array, ""],
    beta: float | Float[Array, ""],
    *,
    width: int,
    impl: Impl = None,
) -> Out:
    """Both halves see all tokens of a block of `width`; `impl` is that of the linear half."""
    q, k, values = wide(q), wide(k), wide(v)
    query_blocks, key_blocks = -(-q.shape[1] // width), -(-k.shape[1] // width)
    same_block = masks.block_layout(np.eye(query_blocks, key_blocks, dtype=bool), width, width)
    near = attend(q, k, values, mask=same_block)
    far = log_normal_attention_full(q, k, values, alpha, beta, impl=impl)
    return ((near + far) / 2).astype(v.dtype)


def _halves(q: Q, k: K, v: V, alpha: Array, beta: Array) -> Out:
    return (log_normal_attention_full(q, k, v, alpha, beta) + attend(q, k, v)) / 2


OPS = (
    Op(
        log_normal_diagonal_attention,
        papers=(158,),
        reads="all",
        draw={"alpha": fill(1.3), "beta": fill(0.8), "width": 4},
        limits=(
            Limit("one block gives the mean of LLN and softmax attention", {"width": 16}, _halves),
        ),
    ),
)
