"""Efficient attention: queries and keys normalized apart, so that k^T v can come first.

    softmax   o_i = softmax_features(q_i) sum_j softmax_positions(k)_j v_j^T
    scaled    o_i = (q_i / sqrt(S)) sum_j (k_j / sqrt(S)) v_j^T

Paper: Shen et al., "Efficient Attention: Attention with Linear Complexities", 2018,
arXiv:1812.01243.
Limits: k = 0 gives the mean of the values (softmax); scaled is dot-product attention over S, which
the test compares with the T x S form.
"""

import jax

from attnjax.core import features
from attnjax.core.numerics import wide
from attnjax.core.recurrence.linear import Impl, linear_attend
from attnjax.core.sharding import of_whole_text
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.linear import mean_of_all
from attnjax.typing import K, Out, Q, V


@of_whole_text
def efficient_attention(q: Q, k: K, v: V, *, impl: Impl = None) -> Out:
    """Softmax over the features of each query, and over the positions of each key channel."""
    queries = features.softmax(wide(q))
    keys = jax.nn.softmax(wide(k), axis=1)
    return linear_attend(queries, keys, v, block=None, impl=impl)


@of_whole_text
def efficient_scaled_attention(q: Q, k: K, v: V, *, impl: Impl = None) -> Out:
    """Dot products over S, without softmax."""
    scale = k.shape[1] ** -0.5
    return linear_attend(scale * wide(q), scale * wide(k), v, block=None, impl=impl)


OPS = (
    Op(
        efficient_attention,
        papers=(130,),
        reads="all",
        limits=(Limit("k = 0 gives the mean of the values", {"k": fill(0.0)}, mean_of_all),),
    ),
    Op(efficient_scaled_attention, papers=(130,), reads="all"),
)
