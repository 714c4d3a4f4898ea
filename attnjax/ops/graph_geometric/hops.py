"""Hop windows: in a prompt where some tokens stand for nodes, nodes see nodes by their distance.

    R = (A + A^T + I)^hops > 0,    two tokens that are nodes see each other where R
    all other pairs of tokens are as the mask says, causal

Windows of one hop are the graph's edges; those between them and all nodes are what the paper trains
with, before it lets all nodes see each other.

Paper: Guan, Wu, Zhao, He and Fan, "Attention Mechanisms Perspective: Exploring LLM Processing of
Graph-Structured Data", 2025, arXiv:2505.02130; code: millioniron/LLM_exploration.
Limits: nodes that all reach each other are causal attention.
Differs: the code adds -6000 where we mask. Nodes see each other both ways, while text stays causal,
by mask = masks.causal | node_pairs(nodes).
"""

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.pairwise.attend import attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, Sizes, by_sizes
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Bool, Int, Out, Q, TokenK, TokenV

NodeOf = Int[Array, " T"]
Reach = Bool[Array, "n n"]


@on_any_mesh
def hop_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    nodes: NodeOf,
    reach: Reach,
    *,
    mask: masks.Mask = masks.causal,
) -> Out:
    """Tokens with their node's number, -1 for text; `reach` is `within(adjacency, hops)`."""
    return attend(q, k, v, mask=mask & hop_window(nodes, reach))


def within(adjacency: np.ndarray, hops: int) -> np.ndarray:
    """Which nodes (n,n) are at most so many edges apart, whichever way an edge points."""
    near = adjacency.astype(bool) | adjacency.astype(bool).T | np.eye(len(adjacency), dtype=bool)
    return np.linalg.matrix_power(near.astype(float), hops) > 0


def hop_window(nodes: NodeOf, reach: Reach) -> masks.Mask:
    """All pairs but those of two nodes that do not reach each other."""
    nodes = jnp.asarray(nodes)
    seen = jnp.asarray(reach)[nodes[:, None], nodes[None]]
    return masks.array((seen | ~_pairs(nodes))[None, None])


def node_pairs(nodes: NodeOf) -> masks.Mask:
    """The pairs of two tokens that are nodes."""
    return masks.array(_pairs(jnp.asarray(nodes))[None, None])


def _pairs(nodes: NodeOf) -> Bool[Array, "T T"]:
    return (nodes >= 0)[:, None] & (nodes >= 0)[None]


def _nodes(z: Sizes) -> np.ndarray:
    """Two of three tokens are nodes, a few of them twice."""
    at = np.arange(z["T"])
    return np.where(at % 3 == 2, -1, at % 5)


def _ring(z: Sizes) -> np.ndarray:
    return within(np.roll(np.eye(5), 1, axis=1), 1)


_NODES = {"nodes": by_sizes(_nodes)}
OPS = (
    Op(
        hop_attention,
        papers=(65,),
        draw=_NODES | {"reach": by_sizes(_ring)},
        limits=(
            Limit(
                "nodes that all reach each other are causal attention",
                {"reach": by_sizes(lambda z: np.ones((5, 5), bool))},
                causal_attention,
            ),
        ),
    ),
)
