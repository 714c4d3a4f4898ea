"""DeepSeek sparse attention: a small indexer scores all keys, and each query attends to the top k.

    I_ts = sum_j w_tj relu(p_tj . r_s),    over the indexer's heads j, which share the keys r
    A_ts = softmax_s(q_t . k_s / sqrt(H)) over the `top_k` allowed keys of largest I_ts

All heads of a query see the same keys.  The indexer learns apart, by `indexer_loss`: the divergence
of softmax_s(I_ts) from the mean of the heads' weights, over all allowed keys or those selected.

Paper: DeepSeek-AI, "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models", 2025,
arXiv:2512.02556, section 2.1; code: deepseek-ai/DeepSeek-V3.2-Exp.
Limits: top_k of all keys is attention.
Differs: the latent keys and values, the norm of r, the rotary positions and Hadamard rotation of p
and r and their 8 bits belong to a layer, and so do factors of w, which change no order.  Of keys
with the same score, such as 0, the first is taken.
"""

import jax.numpy as jnp
from jax import lax

from attnjax.core import masks, mods
from attnjax.core.blocks import select
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import finite
from attnjax.core.pairwise.attend import Impl, attend, attention_scores, attention_weights
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, K, Out, Q, V

IndexQ = Float[Array, "B T M R"]
IndexK = Float[Array, "B S R"]
IndexW = Float[Array, "B T M"]


@of_whole_text
@on_any_mesh
def deepseek_sparse_attention(
    q: Q,
    k: K,
    v: V,
    index_q: IndexQ,
    index_k: IndexK,
    index_w: IndexW,
    *,
    top_k: int = 2048,
    mask: masks.Mask = masks.causal,
    impl: Impl = None,
) -> Out:
    """Attention of each query to the `top_k` keys of largest index score, by M heads of width R.

    Scores are O(T S) numbers for each index head; selecting has no gradient.
    """
    scores = index_scores(index_q, index_k, index_w, mask=mask)
    chosen = select.top_k(scores[:, :, None], top_k, block_k=1)
    return attend(q, k, v, blocks=chosen, mask=mask, impl=impl)


@on_any_mesh
def index_scores(
    index_q: IndexQ,
    index_k: IndexK,
    index_w: IndexW,
    *,
    mask: masks.Mask = masks.causal,
    blocks: Selection | None = None,
) -> Float[Array, "B T S"]:
    """I of every query and key, -inf where the mask or the selection forbids."""
    weigh = mods.mod(lambda score, w: jnp.maximum(score, 0.0) * w, query=finite(index_w))
    q, k = finite(index_q), finite(index_k)[:, :, None]
    scores = attention_scores(q, k, mods=(weigh,), mask=mask, blocks=blocks, scale=1.0)
    return jnp.sum(scores, axis=1)


@on_any_mesh
def indexer_loss(
    q: Q,
    k: K,
    index_q: IndexQ,
    index_k: IndexK,
    index_w: IndexW,
    *,
    top_k: int | None = None,
    mask: masks.Mask = masks.causal,
) -> Float[Array, ""]:
    """KL(mean over heads of the weights || softmax(I)), the mean over queries.

    Gradients reach the indexer alone.  With top_k among the keys that are selected, and the weights
    those of attention to them; None: all, as in warm-up.  Queries that see nothing count as zero.
    """
    index, chosen = (index_q, index_k, index_w), None
    if top_k is not None:
        every = index_scores(*index, mask=mask)
        chosen = select.top_k(every[:, :, None], top_k, block_k=1)
    scores = index_scores(*index, mask=mask, blocks=chosen)
    weights = lax.stop_gradient(attention_weights(q, k, mask=mask, blocks=chosen))
    target = jnp.mean(weights, axis=1)
    seen = jnp.isfinite(scores)
    top = lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-1e30))
    total = jnp.sum(jnp.where(seen, jnp.exp(scores - top), 0.0), axis=-1, keepdims=True)
    log_p = jnp.where(seen, scores - top, 0.0) - jnp.log(jnp.where(total > 0, total, 1.0))
    log_target = jnp.log(jnp.where(target > 0, target, 1.0))
    return jnp.mean(jnp.sum(target * (log_target - log_p), axis=-1))


_APART = "the indexer alone learns; finite differences move with q and k, too"
OPS = (
    Op(
        deepseek_sparse_attention,
        draw={"top_k": 3},
        limits=(Limit("top_k of all keys is attention", {"top_k": 99}, causal_attention),),
        exempt={"future": "what chooses has no gradient; that later tokens choose nothing: a test"},
    ),
    Op(indexer_loss, draw={"top_k": 4}, exempt={"gradients": _APART, "jvp": _APART}),
)
