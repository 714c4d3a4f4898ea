"""MoBA: each query attends to the blocks of keys whose mean key it likes best, and to its own.

    s_i = q_t . mean(k of block i) for blocks i before the query's own,
    A_tj = softmax_j(q_t . k_j / sqrt(H)) over j <= t in the query's own block and in the
           top_k - 1 blocks of largest s_i

Paper: Lu et al., "MoBA: Mixture of Block Attention for Long-Context LLMs", 2025, arXiv:2502.13189,
equations 2 to 6.
Limits: top_k of all blocks is causal attention; top_k = 1 is causal attention inside blocks.
"""

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.selection import Selection
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, by_sizes
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import K, Out, Q, V


@of_whole_text
@on_any_mesh
def moba(
    q: Q,
    k: K,
    v: V,
    *,
    block_size: int = 512,
    top_k: int = 3,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Causal attention to `top_k` blocks of `block_size` keys, the query's own among them.

    Each query head of each query chooses for itself; `mask` forbids more, but does not choose.
    Any layer may be exchanged for `multi_head_attention` with `masks.causal` at any time, also in
    the middle of training: it has no parameters.  A text of fewer blocks than `top_k` is seen
    whole.
    """
    chosen = moba_blocks(q, k, block_size, top_k)
    return attend(q, k, v, blocks=chosen, mask=masks.causal & mask, impl=impl)


@on_any_mesh
def moba_blocks(q: Q, k: K, block_size: int, top_k: int) -> Selection:
    """What each query and head chooses: X = N, one query a block."""
    scores = select.dot_scores(q, select.mean_pool(k, block_size))
    return select.top_k(select.causal_scores(scores, 1, block_size), top_k, block_k=block_size)


def _inside_blocks(q: Q, k: K, v: V, block_size: int, top_k: int) -> Out:
    ids = [t // block_size for t in range(q.shape[1])]
    return multi_head_attention(q, k, v, mask=masks.causal & masks.document(ids))


_DRAW = {"block_size": 3, "top_k": by_sizes(lambda z: min(2, -(-z["S"] // 3)))}
OPS = (
    Op(moba_blocks, papers=(248,), draw=_DRAW),
    Op(
        moba,
        papers=(248,),
        draw=_DRAW,
        limits=(
            Limit(
                "all blocks selected is causal attention",
                {"top_k": by_sizes(lambda z: -(-z["S"] // 3))},
                lambda q, k, v, block_size, top_k: multi_head_attention(q, k, v, mask=masks.causal),
            ),
            Limit("one block is causal attention inside blocks", {"top_k": 1}, _inside_blocks),
        ),
    ),
)
