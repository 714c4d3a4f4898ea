"""Target attention with one embedding to search and score the history, another to read from it.

    s_ij = q_i . k_j / sqrt(H) + q'_i . k'_j / sqrt(R)              items and categories, and time
    C_i = the top_k keys of largest s_ij,    out_i = sum_{j in C_i} softmax_{C_i}(s_ij) v_j

q and k are rows of small tables, v of tables of their own: no parameter has to serve both. A click
model reads concat(v_t, out, v_t * out), v_t the target's row of the tables of v.

Paper: Feng et al., "Long-Sequence Recommendation Models Need Decoupled Embeddings", 2024,
arXiv:2410.02604, section 4; code: thuml/DARE.
Limits: top_k = S with times of zero is softmax attention.
Differs: the code has one target and one head; the loss and its auxiliary head belong to a model.
"""

import math
from typing import Unpack

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend, attention_scores
from attnjax.core.pairwise.request import Terms
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, by_sizes, fill
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V


@of_whole_text
@on_any_mesh
def decoupled_target_attention(
    q: Q,
    k: K,
    v: V,
    q_time: Float[Array, "B T N R"],
    k_time: Float[Array, "B S K R"],
    *,
    top_k: int = 20,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Softmax attention of T targets to the `top_k` best of S past actions, weights summing to one.

    Gradients reach the scores of the keys that are kept. Memory O(T S), of scores to choose by.
    """
    q = _scored(q, q_time, math.sqrt(q.shape[-1]), math.sqrt(q_time.shape[-1]))
    k = _scored(k, k_time, 1.0, 1.0)
    chosen = best_keys(q, k, top_k, mask=mask, scale=1.0)
    out = attend(q, k, wide(v), mask=mask, blocks=chosen, scale=1.0, impl=impl)
    return out.astype(v.dtype)


def best_keys(q: Q, k: K, top_k: int, **terms: Unpack[Terms]) -> Selection:
    """The keys of each query and head with the largest scores, as `attend` would have them.

    `terms` are arguments of `attend`: mods, mask, scale, positions.  Memory O(T S).
    """
    scores = attention_scores(wide(q), wide(k), **terms)
    return select.top_k(scores.transpose(0, 2, 1, 3), top_k, block_q=1, block_k=1)


def _scored(x: Array, time: Array, width: float, time_width: float) -> Array:
    """Both side by side: their product is the sum of two, each with its scale."""
    return jnp.concatenate([wide(x) / width, wide(time) / time_width], axis=-1)


OPS = (
    Op(
        decoupled_target_attention,
        papers=(34,),
        sizes={"R": 3},
        draw={"top_k": 4},
        limits=(
            Limit(
                "all keys and no times: softmax attention",
                {"top_k": by_sizes(lambda z: z["S"]), "q_time": fill(0.0), "k_time": fill(0.0)},
                multi_head_attention,
            ),
        ),
    ),
)
