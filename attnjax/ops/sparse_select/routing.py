"""Routing Transformer: tokens attend inside the clusters of an online k-means.

    x~ = (x - mean(x)) / deviation(x),    A_ij = softmax_j(q~_i . k~_j) inside a cluster:
    the `window` queries and the `window` keys of largest product with its centroid mu; a query in
    several clusters gets the mean of its results, one in none zero
    mu <- decay mu + (1 - decay)/2 sum of (q~ + k~)/sqrt(H) nearest to mu, scaled to length 1

Paper: Roy et al., "Efficient Content-Based Sparse Attention with Routing Transformers", 2020,
arXiv:2003.05997, section 4.1 and algorithm 1.
Limits: one cluster of all tokens is softmax attention of the normalized q and k, of scale 1.
Differs: the released code adds 1e-6 to the variance and 1e-2 to the number of a query's clusters,
so that its outputs are 0.99 of these; its centroids are running means of decay .99 to .999, of any
length, here of length 1. The paper's other half of the heads attends locally: give them to `attend`
with `masks.window`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from attnjax.core import features, masks
from attnjax.core.blocks import select
from attnjax.core.blocks.order import BlockOrder, clusters
from attnjax.core.masks.future import refuse_causal
from attnjax.core.numerics import finite, repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op, by_sizes
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, Int, K, Out, Q, V

Centroids = Float[Array, "N c H"]


@of_whole_text
@on_any_mesh
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
    """Attention inside balanced clusters of `window` queries and `window` keys, both directions.

    centroids  (N,c,H) for each query head; `update_centroids` trains them, no gradient does
    mask       forbids more, but does not choose

    A cluster takes its members from the whole sequence, so a token's result depends on later tokens
    whatever the mask. Raises ValueError for a mask that is known to be causal; a traced one is not
    known. `routing_causal` is the causal form.
    """
    B, T, N, _ = q.shape
    S = k.shape[1]
    if not 1 <= window <= min(T, S):
        raise ValueError(f"window: {window}; expected an integer from 1 to T = {T} and S = {S}")
    refuse_causal(mask, T, S, "routing_causal")
    queries, keys, values = normalized_heads(q, k, v)
    rows = _members(queries, centroids, window)
    columns = _members(keys, centroids, window)
    out = attend(
        rows.take(queries),
        columns.take(keys),
        columns.take(values),
        blocks=select.own_block(B, centroids.shape[1], N, block_q=window, block_k=window),
        mask=columns.seen(mask, T),
        scale=1.0,  # q~ and k~ have length sqrt(H), and no scale makes up for it
        q_positions=rows.order,
        k_positions=columns.order,
        impl=impl,
    )
    return rows.restored(out).astype(q.dtype)


def normalized_heads(
    q: Q, k: K, v: V
) -> tuple[Q, Float[Array, "B S N H"], Float[Array, "B S N D"]]:
    """q~, k~ and v, wide, all with N heads."""
    keys = repeat_heads(features.standardize(wide(k)), q)
    return features.standardize(wide(q)), keys, repeat_heads(wide(v), q)


def _members(x: Q, centroids: Centroids, window: int) -> BlockOrder:
    """The tokens of each cluster of each head, cluster behind cluster."""
    scores = jnp.moveaxis(_products(x, centroids), 1, 3)
    return BlockOrder(clusters(scores, window), window, x.shape[1], full=True)


def nearest_cluster(x: Q, centroids: Centroids) -> Int[Array, "B T N"]:
    """The number of the centroid nearest to each token of each head."""
    return jnp.argmax(_products(x, centroids), axis=-1)


def _products(x: Q, centroids: Centroids) -> Float[Array, "B T N c"]:
    """The product of each token of each head with the centroids of the head."""
    if centroids.ndim != 3 or (len(centroids), centroids.shape[2]) != x.shape[2:]:
        raise ValueError(
            f"centroids: shape {centroids.shape}; expected (N,c,H) with (N,H) = {x.shape[2:]}"
        )
    by_cluster = jnp.swapaxes(centroids, 0, 1)
    return select.dot_scores(x, jnp.broadcast_to(by_cluster, (len(x), *by_cluster.shape)))


def update_centroids(centroids: Centroids, q: Q, k: K, *, decay: float = 0.999) -> Centroids:
    """The centroids after a batch; not differentiated."""
    total = decay * wide(centroids)
    for x in (q, repeat_heads(k, q)):
        x = features.standardize(finite(x))
        member = jax.nn.one_hot(nearest_cluster(x, centroids), centroids.shape[1], dtype=x.dtype)
        sums = jnp.einsum("BTNc,BTNH->NcH", member, x, precision="highest")
        total += (1 - decay) / 2 * sums / x.shape[-1] ** 0.5
    return jax.lax.stop_gradient(features.cosine(total)).astype(centroids.dtype)


def one_cluster(says: str, plain: Callable[..., Out]) -> Limit:
    """One cluster and a window of all tokens, of normalized q and k; `plain` has 1 / sqrt(H)."""
    return Limit(
        says,
        {
            "centroids": Draw(lambda slot: slot.normal("N 1 H")),
            "window": by_sizes(lambda z: z["T"]),
        },
        lambda q, k, v: plain(
            q.shape[-1] ** 0.5 * features.standardize(q), features.standardize(k), v
        ),
    )


OPS = (
    Op(
        routing_attention,
        papers=(315,),
        reads="all",
        draw={"window": by_sizes(lambda z: min(4, z["T"], z["S"]))},
        sizes={"c": 3},
        limits=(
            one_cluster("one cluster of all tokens is softmax attention", multi_head_attention),
        ),
    ),
)
