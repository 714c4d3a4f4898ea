"""Routing Transformer, causal in full: each token joins the cluster of its nearest centroid.

    c(x) = argmax_c mu_c . x~,    A_ij = softmax_j(q~_i . k~_j) over keys j <= i of the cluster
    c(q_i) that lie in the last chunk of its keys up to i, or in the chunk before,
    chunks being each `window` successive keys of a cluster

Paper: Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers", 2020,
arXiv:2003.05997, section 4.1.
Limits: one cluster and a window of all tokens are causal softmax attention of the normalized q
and k, of scale 1.
Differs: the paper's clusters take their members from the whole sequence, `routing_attention`. Here
membership is a token's own, clusters are not balanced, and a query sees at most 2 window keys.
"""

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.blocks.order import BlockOrder
from attnjax.core.blocks.selection import Selection
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Op
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.ops.sparse_select.routing import (
    Centroids,
    nearest_cluster,
    normalized_heads,
    one_cluster,
)
from attnjax.typing import Array, Int, K, Out, Q, V


@of_whole_text
@on_any_mesh
def routing_causal(
    q: Q,
    k: K,
    v: V,
    centroids: Centroids,
    *,
    window: int,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Causal attention inside clusters, `centroids` (N,c,H) for each query head; `mask` adds.

    The paper's model gives q for k, too. Neither weights nor membership depend on later tokens.
    """
    if window < 1:
        raise ValueError(f"window: {window}; expected at least 1")
    T = q.shape[1]
    queries, keys, values = normalized_heads(q, k, v)
    order, chosen = _chunks(
        nearest_cluster(queries, centroids),
        nearest_cluster(keys, centroids),
        centroids.shape[1],
        window,
    )
    out = attend(
        queries,
        order.take(keys),
        order.take(values),
        blocks=chosen,
        mask=order.seen(masks.causal & mask, T),
        scale=1.0,
        k_positions=order.order,
        impl=impl,
    )
    return out.astype(q.dtype)


def _chunks(
    of_query: Int[Array, "B T N"], of_key: Int[Array, "B S N"], clusters: int, window: int
) -> tuple[BlockOrder, Selection]:
    """Keys cluster behind cluster, and for each query the last two chunks of its cluster so far.

    Each cluster's keys begin a block of their own, so that its blocks are its chunks.
    """
    T, (B, S, N) = of_query.shape[1], of_key.shape
    its_own = of_key[..., None] == jnp.arange(clusters).reshape(1, 1, 1, -1)
    count = jnp.cumsum(its_own, axis=1)  # (B,S,N,c), so far
    blocks = -(-count[:, -1:] // window)
    first_block = jnp.cumsum(blocks, axis=-1) - blocks  # (B,1,N,c)

    place = _entry(first_block, of_key) * window + _entry(count, of_key) - 1  # (B,S,N)
    places = (S + clusters * (window - 1)) // window * window  # enough, however clusters are filled
    where = jnp.arange(B)[:, None, None], place, jnp.arange(N)[None, None]
    order = jnp.full((B, places, N), S).at[where].set(jnp.arange(S)[None, :, None])

    seen = _entry(count[:, jnp.minimum(jnp.arange(T), S - 1)], of_query)  # (B,T,N)
    last = _entry(first_block, of_query) + (seen - 1) // window
    chosen = Selection(
        indices=jnp.stack([last, last - 1], axis=-1),
        valid=jnp.stack([seen > 0, seen > window], axis=-1),
        block_q=1,
        block_k=window,
    )
    return BlockOrder(order, window, S), chosen


def _entry(x: Int[Array, "B t N c"], cluster: Int[Array, "B T N"]) -> Int[Array, "B T N"]:
    """That of a token's cluster; t is T or 1."""
    return jnp.take_along_axis(x, cluster[..., None], axis=-1)[..., 0]


OPS = (
    Op(
        routing_causal,
        papers=(315,),
        draw={"window": 2},
        sizes={"c": 3},
        limits=(
            one_cluster(
                "one cluster and a window of all tokens are causal attention", causal_attention
            ),
        ),
    ),
)
