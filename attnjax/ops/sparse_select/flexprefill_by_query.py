"""FlexPrefill's query-aware pattern for each query by itself: a form that is strictly causal.

    p_ib = softmax_b(q_i . mean(k in b) / sqrt(H)) over the blocks between the first and i's own
    A_ij = softmax_j(q_i . k_j / sqrt(H)) over j <= i in the first block, in i's own, and in the
           fewest blocks whose p_ib reach the share gamma

Paper: Lai et al., "FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient
Long-Sequence Inference", 2025, arXiv:2502.20766, algorithm 4.
Limits: gamma = 1 is causal attention.
Differs: there, blocks of queries share the mass of the whole head, so the last may take what the
first would have kept; here a query depends on no later one, and can be decoded.
"""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import K, Out, Q, V


@of_whole_text
@on_any_mesh
def flexprefill_by_query(
    q: Q,
    k: K,
    v: V,
    *,
    block_size: int = 64,
    gamma: float = 0.95,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Causal attention; each query of each head takes as many blocks as its mass asks for.

    `mask` forbids more, but does not choose.
    """
    scores = select.dot_scores(q, select.mean_pool(k, block_size)) * q.shape[-1] ** -0.5
    ranked = select.causal_scores(scores, 1, block_size)
    between = (np.arange(scores.shape[-1]) > 0).reshape(1, 1, 1, -1) & jnp.isfinite(ranked)
    mass = jax.nn.softmax(jnp.where(between, scores, -1e30))
    always = jnp.where(ranked > -jnp.inf, jnp.inf, 0.0)  # the first and the own; never later ones
    mass = jnp.where(between, mass, always)
    chosen = select.top_p(mass, gamma, block_k=block_size)
    return attend(q, k, v, blocks=chosen, mask=masks.causal & mask, impl=impl)


OPS = (
    Op(
        flexprefill_by_query,
        papers=(77,),
        draw={"block_size": 2, "gamma": 0.5},
        limits=(Limit("gamma = 1 is causal attention", {"gamma": 1.0}, causal_attention),),
    ),
)
