"""TidalDecode: a layer attends to the keys that the queries of an earlier layer scored highest.

    seen_i = the `keep` keys j of largest p_i . r_j, each query head for itself
    A_ij   = softmax_j(q_i . k_j / sqrt(H)) over the seen keys

p and r are the queries and keys of a layer that attends in full, the third or the tenth of a model
in the released code: all layers behind it, up to the next such one, see what it chose.  A layer by
its own q and k sees its exact top keys.  Neither sinks nor recent keys are kept for their place.

Paper: Yang et al., "TidalDecode: Fast and Accurate LLM Decoding with Position Persistent Sparse
Attention", 2024, arXiv:2410.05076, section 3; code: DerrickYLJ/TidalDecode.
Limits: `keep` of all keys is attention.
Differs: every query here chooses; the paper fills its cache in full, and only decoding chooses.
Computing a cache again with full attention after some steps is the caller's.
"""

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.numerics import finite
from attnjax.core.pairwise.attend import Impl, attend, attention_scores
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, K, Out, Q, V


@of_whole_text
@on_any_mesh
def tidal_attention(
    q: Q,
    k: K,
    v: V,
    chooser_q: Float[Array, "B T N R"],
    chooser_k: Float[Array, "B S K R"],
    *,
    keep: int,
    mask: masks.Mask = masks.causal,
    impl: Impl = None,
) -> Out:
    """Attention over the `keep` keys that `chooser_q` scores highest of those that `mask` allows.

    The scores that choose are dense, O(T S) numbers for each head; they have no gradient.
    """
    scores = attention_scores(finite(chooser_q), finite(chooser_k), mask=mask)
    chosen = select.top_k(jnp.swapaxes(scores, 1, 2), keep, block_k=1)
    return attend(q, k, v, blocks=chosen, mask=mask, impl=impl)


OPS = (
    Op(
        tidal_attention,
        papers=(179,),
        draw={"keep": 3},
        limits=(Limit("all keys kept: attention", {"keep": 99}, causal_attention),),
        exempt={"future": "what chooses has no gradient; that later tokens choose nothing: a test"},
    ),
)
