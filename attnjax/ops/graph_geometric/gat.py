"""GAT: graph attention whose scores are a sum of a number of the receiver and one of the sender.

    s_ij = leaky_relu(a . h_i + b . h'_j),    out_i = sum over edges j -> i of softmax_j(s_ij) h'_j

so that all nodes rank their neighbors alike: static attention.

Paper: Velickovic, Cucurull, Casanova, Romero, Lio and Bengio, "Graph Attention Networks", 2018,
arXiv:1710.10903; code: pyg-team/pytorch_geometric.
Limits: a = b = 0 is the mean of the neighbors.
Differs: the map h = x W, self loops (`with_self_loops`), the concatenation or mean of heads and a
bias behind it belong to a layer.
"""

import jax.numpy as jnp
from jax.nn import leaky_relu

from attnjax.core.numerics import aligned, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.graph_geometric.edges import (
    GRAPH,
    Edges,
    Nodes,
    Senders,
    edge_attend,
    edge_sum,
    of_receivers,
    of_senders,
)
from attnjax.typing import Array, Float

Vectors = Float[Array, "N H"]


@on_any_mesh
def gat_attention(
    q: Nodes, k: Senders, to: Vectors, by: Vectors, edges: Edges, *, slope: float = 0.2
) -> Nodes:
    """Nodes q, senders k, which are the values; `to` weighs the receiver, `by` the sender."""
    of = lambda x, a: jnp.sum(wide(x) * aligned(a, x), axis=-1)
    raw = of_receivers(of(q, to), edges) + of_senders(of(k, by), edges)
    return edge_attend(leaky_relu(raw, slope), of_senders(k, edges), edges, q.shape[1])


def mean_of_neighbors(q: Nodes, k: Senders, edges: Edges) -> Nodes:
    """The mean of the senders of each node's edges."""
    total = edge_sum(of_senders(k, edges), edges, q.shape[1])
    degree = edge_sum(of_senders(jnp.ones_like(k), edges), edges, q.shape[1])
    return total / jnp.maximum(degree, 1.0)


OPS = (
    Op(
        gat_attention,
        reads="all",
        draw=GRAPH,
        limits=(
            Limit(
                "a = b = 0 is the mean of the neighbors",
                {"to": fill(0.0), "by": fill(0.0)},
                mean_of_neighbors,
            ),
        ),
    ),
)
