"""LATTE: attention within each relation of a graph, and a softmax over a node's relations.

    a = softmax over the edges of r that end at i of sharp_r leaky_relu(l_r . h_i + m_r . h'_j)
    z_i^r = sum_j a_ij h'_j,    b_i = softmax(c_i),    out_i = sum_r b_i^r z_i^r + b_i^0 h_i

A node without edges of a relation gets zero from it. Layers of higher order have chained relations
for edges, i - k - j where the attention of i to k reaches a threshold: `chained`.

Paper: Tran and Gao, "Layer-stacked Attention for Heterogeneous Network Embedding", 2020,
arXiv:2009.08072; code: JonnyTran/LATTE.
Limits: one relation, b^0 = 0 and sharp = 1 is GAT.
Differs: the maps h = x W_l, h' = x W_r of a node's type and c = x W of the layer's input, the bend
behind it and what becomes of the outputs of several layers belong to a layer. Nodes of all types
stand in one list; c is -inf for relations that a type has not. Of released bends the learned
sharpening is here. Edges that a chain is drawn from by chance are not.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import leaky_relu, softplus

from attnjax.core.numerics import aligned, einsum, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op, Sizes, Slot, by_sizes, fill
from attnjax.ops.graph_geometric.edges import (
    Edges,
    Nodes,
    Senders,
    drawn_edges,
    edge_attend,
    edges_of,
    of_receivers,
    of_senders,
    segment_softmax,
)
from attnjax.ops.graph_geometric.gat import gat_attention
from attnjax.typing import Array, Float

Vectors = Float[Array, "R N H"]
Relations = tuple[Edges, ...]


@on_any_mesh
def relation_attention(
    q: Nodes,
    k: Senders,
    to: Vectors,
    by: Vectors,
    sharp: Float[Array, " R"],
    choice: Float[Array, "B T _"],
    edges: Relations,
) -> Nodes:
    """Nodes q = h, senders k = h', vectors l = to and m = by, and c = choice, b^0's the last.

    Raises ValueError where numbers of relations differ.
    """
    if not len(edges) == len(to) == len(by) == choice.shape[-1] - 1:
        raise ValueError(
            f"relation_attention: {len(edges)} relations in edges, {len(to)} in to, {len(by)} in "
            f"by and {choice.shape[-1]} choices, expected as many of each and one choice more"
        )
    parts = [
        edge_attend(
            relation_scores(q, k, to[r], by[r], sharp[r], of_r),
            of_senders(wide(k), of_r),
            of_r,
            q.shape[1],
        )
        for r, of_r in enumerate(edges)
    ]
    every = jnp.stack([*parts, wide(q)], axis=2)
    weights = jax.nn.softmax(wide(choice), axis=-1)
    return einsum("BTR,BTRNH->BTNH", weights, every).astype(q.dtype)


def relation_scores(
    q: Nodes, k: Senders, to: Array, by: Array, sharp: Array, edges: Edges
) -> Float[Array, "B E N"]:
    """Scores of a relation's edges, wide: what its weights and its likelihoods come from."""
    of = lambda x, a: jnp.sum(wide(x) * aligned(a, x), axis=-1)
    raw = of_receivers(of(q, to), edges) + of_senders(of(k, by), edges)
    return wide(sharp) * leaky_relu(raw, 0.2)


@on_any_mesh
def proximity_loss(
    q: Nodes,
    k: Senders,
    to: Vectors,
    by: Vectors,
    sharp: Float[Array, " R"],
    edges: Relations,
    absent: Relations,
) -> Float[Array, ""]:
    """How unlikely the edges are and how likely pairs that are none, over 2 R relations.

    A pair is likely by sigmoid(sharp leaky_relu(the heads' largest l . h_i + m . h'_j)).
    """
    total = jnp.zeros((), jnp.result_type(wide(q), wide(k)))
    for pairs, sign in ((edges, -1.0), (absent, 1.0)):
        for r, of_r in enumerate(pairs):
            scores = relation_scores(q, k, to[r], by[r], jnp.ones_like(sharp[r]), of_r)
            logits = wide(sharp[r]) * jnp.max(scores, axis=-1)
            there = jnp.broadcast_to(of_r.valid, logits.shape)
            mean = jnp.sum(jnp.where(there, softplus(sign * logits), 0.0))
            total = total + mean / jnp.maximum(jnp.sum(there), 1).astype(mean.dtype)
    return total / (2 * len(edges))


def relation_weights(scores: Array, edges: Edges, nodes: int) -> Float[Array, "B E"]:
    """The largest of the heads' attention of each edge, by which chains are cut."""
    return jnp.max(segment_softmax(scores, edges, nodes), axis=-1)


def chained(first: Edges, weights: np.ndarray, second: Edges, *, threshold: float = 0.5) -> Edges:
    """Edges j -> i where k -> i is in `first`, weighs at least `threshold`, and j -> k in `second`.

    On the host, of graphs that all examples share: how many there are depends on the weights (E,).
    Where none reaches the threshold the heaviest counts.
    """
    weights = np.where(np.asarray(first.valid), np.asarray(weights), -np.inf)
    kept = (weights >= threshold) & np.asarray(first.valid)
    if not kept.any():
        kept = weights == weights.max()
    near, ahead = np.asarray(first.senders)[kept], np.asarray(first.receivers)[kept]
    there = np.asarray(second.valid)
    far, middle = np.asarray(second.senders)[there], np.asarray(second.receivers)[there]
    a, b = np.nonzero(near[:, None] == middle)
    receivers, senders = np.unique(np.stack([ahead[a], far[b]]), axis=1)
    return edges_of(senders, receivers)


def _one_relation(q: Nodes, k: Senders, to: Vectors, by: Vectors, edges: Sequence[Edges]) -> Nodes:
    return gat_attention(q, k, to[0], by[0], edges[0])


def _relations(z: Sizes) -> Relations:
    more = {**z, "S": max(1, z["S"] - 3)}
    return (drawn_edges(z), drawn_edges(more))[: z["R"]]


def _absent(z: Sizes) -> Relations:
    return tuple(drawn_edges({**z, "S": max(1, z["S"] - 2 - r)}) for r in range(z["R"]))


def _choices(slot: Slot) -> np.ndarray:
    z = slot.sizes
    return slot.rng.standard_normal((z["B"], z["T"], z["R"] + 1))


def _no_own(slot: Slot) -> np.ndarray:
    return np.broadcast_to([0.0, -np.inf, -np.inf], (slot.sizes["B"], slot.sizes["T"], 3))


_DRAW = {"edges": by_sizes(_relations)}
OPS = (
    Op(
        relation_attention,
        papers=(284,),
        reads="all",
        draw=_DRAW | {"choice": Draw(_choices)},
        sizes={"R": 2},
        limits=(
            Limit(
                "one relation chosen, not sharpened, is GAT",
                {"choice": Draw(_no_own), "sharp": fill(1.0)},
                _one_relation,
            ),
        ),
    ),
    Op(
        proximity_loss,
        papers=(284,),
        draw=_DRAW | {"absent": by_sizes(_absent)},
        sizes={"R": 2},
        limits=(
            Limit(
                "without features every pair is as likely as not",
                {"q": fill(0.0), "k": fill(0.0)},
                lambda: jnp.log(2.0),
            ),
        ),
    ),
)
