"""Routing Transformer, causal in full: each token joins the cluster of its nearest centroid.

    c(x) = argmax_c mu_c . x~,    A_ij = softmax_j(q~_i . k~_j / sqrt(H)) over keys j <= i of the
    cluster c(q_i) that lie in the last chunk of its keys up to i, or in the chunk before,
    chunks being each `window` successive keys of a cluster

Paper: Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers", 2020,
arXiv:2003.05997, section 4.1.
Limits: one cluster and a window of all tokens are causal softmax attention of the normalized q
and k.
Differs: the paper's clusters take their members from the whole sequence, `routing_attention`. Here
membership is a token's own, clusters are not balanced, and a query sees at most 2 window keys.
"""

import jax.numpy as jnp

from attnjax.core import features, masks
from attnjax.core.blocks.order import take_tokens
from attnjax.core.blocks.runs import mask_of_tokens
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Draw, Limit, Op, by_sizes
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.ops.sparse_select.routing import Centroids, likes
from attnjax.typing import K, Out, Q, V


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
    (B, T, N, _), S, c = q.shape, k.shape[1], centroids.shape[1]
    if window < 1:
        raise ValueError(f"window: {window}; expected at least 1")
    q, k, dtype = features.standardize(wide(q)), features.standardize(wide(k)), q.dtype
    k, v = (repeat_heads(x, q) for x in (k, wide(v)))
    of_query, of_key = (jnp.argmax(likes(x, centroids), -1)[..., None] for x in (q, k))

    # Each cluster's keys begin a block of their own, so that its blocks are its chunks.
    so_far = jnp.cumsum(of_key == jnp.arange(c), axis=1)  # (B,S,N,c) keys of each cluster
    blocks = -(-so_far[:, -1:] // window)
    first = jnp.cumsum(blocks, -1) - blocks  # (B,1,N,c)
    pick = lambda x, cluster: jnp.take_along_axis(x, cluster, -1)[..., 0]
    slot = pick(first, of_key) * window + pick(so_far, of_key) - 1  # (B,S,N)
    size = (S + c * (window - 1)) // window * window
    at = jnp.arange(B)[:, None, None], slot, jnp.arange(N)
    order = jnp.full((B, size, N), S).at[at].set(jnp.arange(S)[:, None])  # S: no key

    seen = pick(so_far[:, jnp.minimum(jnp.arange(T), S - 1)], of_query)  # (B,T,N)
    last = pick(first, of_query) + (seen - 1) // window
    chosen = Selection(
        jnp.stack([last, last - 1], -1), jnp.stack([seen > 0, seen > window], -1), 1, window
    )
    ahead = mask_of_tokens(masks.causal & mask, T, S)
    k, v = (take_tokens(x, jnp.minimum(order, S - 1)) for x in (k, v))
    out = attend(q, k, v, blocks=chosen, mask=ahead, k_positions=order, impl=impl)
    return out.astype(dtype)


OPS = (
    Op(
        routing_causal,
        papers=(315,),
        draw={"window": 2},
        sizes={"c": 3},
        limits=(
            Limit(
                "one cluster and a window of all tokens are causal attention",
                {
                    "centroids": Draw(lambda slot: slot.normal("N 1 H")),
                    "window": by_sizes(lambda z: z["T"]),
                },
                lambda q, k, v: multi_head_attention(
                    features.standardize(q), features.standardize(k), v, mask=masks.causal
                ),
            ),
        ),
    ),
)
