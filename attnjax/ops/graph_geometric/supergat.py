"""SuperGAT: graph attention that also learns to tell edges from pairs that are none.

    MX: s_ij = (a . h_i + b . h_j) sigmoid(h_i . h_j)        SD: s_ij = h_i . h_j / sqrt(H)
    out_i = sum over edges j -> i of softmax_j(leaky_relu(s_ij)) h_j
    loss = mean over edges of -log p_ij and over other pairs of -log(1 - p_ij),    p = sigmoid(phi)
    phi_ij = the mean over heads of h_i . h_j in MX, of h_i . h_j / sqrt(H) in SD

Paper: Kim and Oh, "How to Find Your Friendly Neighborhood: Graph Attention Design with
Self-Supervision", 2021, arXiv:2204.04879; code: pyg-team/pytorch_geometric.
Limits: MX of a = b = 0 is the mean of the neighbors; SD with slope 1 is neighborhood attention of
h alone; without features every pair is as likely as not, log 2.
Differs: the map h = x W, self loops (`with_self_loops`), which count as edges in the loss, a bias
behind the heads and what is sampled - all edges, half as many other pairs - belong to a layer. The
one mean is over edges and pairs together.
"""

import math

import jax.numpy as jnp
from jax.nn import leaky_relu, sigmoid, softplus

from attnjax.core.numerics import aligned, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, Sizes, by_sizes, fill
from attnjax.ops.graph_geometric.edges import (
    Edges,
    Nodes,
    drawn_edges,
    edge_attend,
    neighbor_attention,
    neighbor_scores,
    of_receivers,
    of_senders,
)
from attnjax.ops.graph_geometric.gat import Vectors, mean_of_neighbors
from attnjax.typing import Array, Float


@on_any_mesh
def supergat_mixed(
    x: Nodes, to: Vectors, by: Vectors, edges: Edges, *, slope: float = 0.2
) -> Nodes:
    """MX: GAT's score, gated by the likelihood of the edge; `to` weighs the receiver."""
    of = lambda a: jnp.sum(wide(x) * aligned(a, x), axis=-1)
    raw = of_receivers(of(to), edges) + of_senders(of(by), edges)
    gated = raw * sigmoid(edge_logits(x, edges))
    return edge_attend(leaky_relu(gated, slope), of_senders(x, edges), edges, x.shape[1])


@on_any_mesh
def supergat_scaled(x: Nodes, edges: Edges, *, slope: float = 0.2) -> Nodes:
    """SD: the scaled product, bent."""
    scores = leaky_relu(neighbor_scores(x, x, edges), slope)
    return edge_attend(scores, of_senders(x, edges), edges, x.shape[1])


def edge_logits(x: Nodes, edges: Edges) -> Float[Array, "B E N"]:
    """h_i . h_j of each edge, wide."""
    return neighbor_scores(x, x, edges) * math.sqrt(x.shape[-1])


@on_any_mesh
def supergat_loss(x: Nodes, edges: Edges, absent: Edges, *, scale: float = 1.0) -> Float[Array, ""]:
    """The binary cross entropy of `edges`, which there are, and of pairs that are `absent`.

    scale is 1 for MX and 1 / sqrt(H) for SD.
    """
    phi = lambda pairs: scale * jnp.mean(edge_logits(x, pairs), axis=-1)
    there = lambda pairs: jnp.broadcast_to(pairs.valid, (len(x), pairs.valid.shape[-1]))
    ones, zeros = there(edges), there(absent)
    total = jnp.sum(jnp.where(ones, softplus(-phi(edges)), 0.0))
    total += jnp.sum(jnp.where(zeros, softplus(phi(absent)), 0.0))
    return total / jnp.maximum(jnp.sum(ones) + jnp.sum(zeros), 1).astype(total.dtype)


def _mean(x: Nodes, edges: Edges) -> Nodes:
    return mean_of_neighbors(x, x, edges)


def _plain(x: Nodes, edges: Edges) -> Nodes:
    return neighbor_attention(x, x, x, edges)


def _other_edges(z: Sizes) -> Edges:
    return drawn_edges({**z, "T": z["T"], "S": max(1, z["T"] - 2)})


_GRAPH = {"edges": by_sizes(lambda z: drawn_edges({**z, "S": z["T"]}))}
OPS = (
    Op(
        supergat_mixed,
        papers=(94,),
        reads="all",
        draw=_GRAPH,
        limits=(
            Limit(
                "a = b = 0 is the mean of the neighbors", {"to": fill(0.0), "by": fill(0.0)}, _mean
            ),
        ),
    ),
    Op(
        supergat_scaled,
        papers=(94,),
        reads="all",
        draw=_GRAPH,
        limits=(Limit("without a bend it is neighborhood attention", {"slope": 1.0}, _plain),),
    ),
    Op(
        supergat_loss,
        papers=(94,),
        draw={**_GRAPH, "absent": by_sizes(_other_edges)},
        limits=(
            Limit(
                "without features every pair is as likely as not",
                {"x": fill(0.0)},
                lambda: jnp.log(2.0),
            ),
        ),
    ),
)
