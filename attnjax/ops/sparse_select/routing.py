"""Routing Transformer: tokens attend inside the clusters of an online k-means.

    x~ = (x - mean(x)) / deviation(x),    A_ij = softmax_j(q~_i . k~_j / sqrt(H)) inside a cluster:
    the `window` queries and the `window` keys of largest product with its centroid mu; a query in
    several clusters gets the mean of its results, one in none zero
    mu <- decay mu + (1 - decay)/2 sum of (q~ + k~)/sqrt(H) nearest to mu, scaled to length 1

Paper: Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers", 2020,
arXiv:2003.05997, section 4.1 and algorithm 1.
Limits: one cluster of all tokens is softmax attention of the normalized q and k.
Differs: q~ and k~ have length sqrt(H), centroids 1. The paper's other half of the heads attends
locally: give them to `attend` with `masks.window`.
"""

import jax
import jax.numpy as jnp

from attnjax.core import features, masks
from attnjax.core.blocks import select
from attnjax.core.blocks.order import BlockOrder, clusters
from attnjax.core.numerics import finite, repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Draw, Limit, Op, by_sizes
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V

Centroids = Float[Array, "N c H"]


def routing_attention(
    q: Q,
    k: K,
    v: V,
    centroids: Centroids,
    *,
    window: int,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Attention inside balanced clusters; `mask` forbids more, but does not choose.

    The paper's language model gives q for k, too, and `masks.causal`: no weight is on a later
    token, but a cluster takes its members from the whole sequence. `routing_causal` does not.
    """
    (B, T, N, _), S = q.shape, k.shape[1]
    if not 1 <= window <= min(T, S):
        raise ValueError(f"window: {window}; expected an integer from 1 to T = {T} and S = {S}")
    q, k, dtype = features.standardize(wide(q)), features.standardize(wide(k)), q.dtype
    k, v = (repeat_heads(x, q) for x in (k, wide(v)))
    liking = (jnp.moveaxis(likes(x, centroids), 1, 3) for x in (q, k))
    rows, columns = (
        BlockOrder(clusters(scores, window), window, n, full=True)
        for scores, n in zip(liking, (T, S), strict=True)
    )
    out = attend(
        rows.take(q),
        columns.take(k),
        columns.take(v),
        blocks=select.own_block(B, centroids.shape[1], N, block_q=window, block_k=window),
        mask=columns.seen(mask, T),
        q_positions=rows.order,
        k_positions=columns.order,
        impl=impl,
    )
    return rows.restored(out).astype(dtype)


def likes(x: Q, centroids: Centroids) -> Float[Array, "B T N c"]:
    """The product of each token of each head with the centroids of the head."""
    if centroids.ndim != 3 or (len(centroids), centroids.shape[2]) != x.shape[2:]:
        raise ValueError(
            f"centroids: shape {centroids.shape}; expected (N,c,H) with (N,H) = {x.shape[2:]}"
        )
    shared = jnp.swapaxes(centroids, 0, 1)[None]
    return select.dot_scores(x, jnp.repeat(shared, len(x), axis=0))


def update_centroids(centroids: Centroids, q: Q, k: K, *, decay: float = 0.999) -> Centroids:
    """The centroids after a batch; not differentiated."""
    total = decay * wide(centroids)
    for x in (q, repeat_heads(k, q)):
        x = features.standardize(finite(x))
        nearest = jnp.argmax(likes(x, centroids), axis=-1)
        member = jax.nn.one_hot(nearest, centroids.shape[1], dtype=x.dtype)
        add = jnp.einsum("BTNc,BTNH->NcH", member, x, precision="highest")
        total += (1 - decay) / 2 * add / x.shape[-1] ** 0.5
    return jax.lax.stop_gradient(features.cosine(total)).astype(centroids.dtype)


OPS = (
    Op(
        routing_attention,
        papers=(315,),
        draw={"window": by_sizes(lambda z: min(4, z["T"], z["S"]))},
        sizes={"c": 3},
        limits=(
            Limit(
                "one cluster of all tokens is softmax attention",
                {
                    "centroids": Draw(lambda slot: slot.normal("N 1 H")),
                    "window": by_sizes(lambda z: z["T"]),
                },
                lambda q, k, v: multi_head_attention(
                    features.standardize(q), features.standardize(k), v
                ),
            ),
        ),
    ),
)
