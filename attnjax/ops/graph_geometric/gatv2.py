"""GATv2: graph attention that can rank the neighbors of each node in an order of its own.

    s_ij = a . leaky_relu(h_i + h'_j + f_ij),    out_i = sum over edges of softmax_j(s_ij) h'_j

with f of the edge, if there is any. GAT applies a before the bend, which only scales all scores of
a node up or down.

Paper: Brody, Alon and Yahav, "How Attentive are Graph Attention Networks?", 2022,
arXiv:2105.14491; code: pyg-team/pytorch_geometric.
Limits: a = 0 is the mean of the neighbors; slope = 1 is GAT without a bend, to = by = a.
Differs: the maps h = x W_l and h' = x W_r (the code calls the senders' W_l), f = edge W_e, self
loops (`with_self_loops`), the concatenation or mean of heads and a bias belong to a layer.
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
    of_receivers,
    of_senders,
)
from attnjax.ops.graph_geometric.gat import Vectors, gat_attention, mean_of_neighbors
from attnjax.typing import Array, Float


@on_any_mesh
def gatv2_attention(
    q: Nodes,
    k: Senders,
    weight: Vectors,
    edges: Edges,
    *,
    features: Float[Array, "B E N H"] | None = None,
    slope: float = 0.2,
) -> Nodes:
    """Nodes q, senders k, which are the values; `features` of the edges, in their sorted order."""
    values = of_senders(k, edges)
    sums = of_receivers(wide(q), edges) + wide(values)
    if features is not None:
        sums = sums + wide(features)
    scores = jnp.sum(leaky_relu(sums, slope) * aligned(weight, sums), axis=-1)
    return edge_attend(scores, values, edges, q.shape[1])


def _static(q: Nodes, k: Senders, weight: Vectors, edges: Edges) -> Nodes:
    return gat_attention(q, k, weight, weight, edges, slope=1.0)


OPS = (
    Op(
        gatv2_attention,
        papers=(202,),
        reads="all",
        draw=GRAPH,
        limits=(
            Limit("a = 0 is the mean of the neighbors", {"weight": fill(0.0)}, mean_of_neighbors),
            Limit("without a bend it is GAT", {"slope": 1.0}, _static),
        ),
    ),
)
