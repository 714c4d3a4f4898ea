"""Attention along the edges of a graph: softmax over the edges that end at a node.

    A_e = exp(s_e) / sum of exp(s_d) over the edges d with the same receiver
    out_i = sum of A_e v_e over the edges e that end at node i

for any scores s and values v of edges. Edges are lists of senders and receivers, padded to a static
length and sorted once by receiver: O(E) work and memory, whatever the graph. Neighborhood attention
has s_ij = q_i . k_j / sqrt(H) and the sender's v.

Paper: "Attention is all you need for boosting graph convolutional neural network" (GKEDM), 2024,
arXiv:2403.15419: a graph network's last convolution becomes neighborhood attention, of nodes and
Laplacian positions, and a student's weights are drawn to those of its teacher.
Limits: all pairs as edges are softmax attention.
Differs: no code was found; the divergence between weights is our reading.  Its block adds the nodes
to the output, projected, and norms the sum.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.numerics import divide, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.core.values import Value
from attnjax.op import Draw, Limit, Op, Sizes, Slot, by_sizes
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Bool, Float, Leaf, Out

Nodes = Float[Array, "B T N H"]  # receivers
Senders = Float[Array, "B S N H"]
OfEdges = Float[Array, "B E N"]

_NOWHERE = np.iinfo(np.int32).max  # the receiver of padding: behind all others, and dropped


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["senders", "receivers", "valid"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Edges(Value):
    """Edges sorted by receiver, those that are padding last: what `edges_of` makes.

    senders, receivers   (E,) integers for all examples, or (B,E)
    valid                the same shape: which edges there are

    Two edges between the same nodes are two.
    """

    senders: Leaf
    receivers: Leaf
    valid: Leaf


def edges_of(senders: Any, receivers: Any, valid: Any = None) -> Edges:
    """Edges in any order, sorted.  Raises ValueError for arrays of different shapes."""
    senders, receivers = jnp.asarray(senders, jnp.int32), jnp.asarray(receivers, jnp.int32)
    valid = jnp.ones(senders.shape, bool) if valid is None else jnp.asarray(valid, bool)
    if not senders.shape == receivers.shape == valid.shape or senders.ndim not in (1, 2):
        raise ValueError(
            f"edges_of: senders {senders.shape}, receivers {receivers.shape} and valid "
            f"{valid.shape}, expected (E,) or (B,E) for all"
        )
    receivers = jnp.where(valid, receivers, _NOWHERE)
    order = jnp.argsort(receivers, axis=-1, stable=True)
    take = lambda x: jnp.take_along_axis(x, order, axis=-1)
    return Edges(take(jnp.where(valid, senders, 0)), take(receivers), take(valid))


def with_self_loops(edges: Edges, nodes: int) -> Edges:
    """With one edge from each node to itself, and no other such edge."""
    shape = (*edges.senders.shape[:-1], nodes)
    own = jnp.broadcast_to(jnp.arange(nodes, dtype=jnp.int32), shape)
    join = lambda x, y: jnp.concatenate([x, y], axis=-1)
    kept = edges.valid & (edges.senders != edges.receivers)
    receivers = jnp.where(edges.valid, edges.receivers, 0)
    return edges_of(join(edges.senders, own), join(receivers, own), join(kept, own >= 0))


# ---------------------------------------------------------------------- along edges, and to nodes


def of_senders(x: Array, edges: Edges) -> Array:
    """x (B,S,...) of each edge's sender, (B,E,...); zero for padding."""
    return _gathered(x, edges, edges.senders)


def of_receivers(x: Array, edges: Edges) -> Array:
    """x (B,T,...) of each edge's receiver, (B,E,...); zero for padding."""
    return _gathered(x, edges, edges.receivers)


def _gathered(x: Array, edges: Edges, at: Array) -> Array:
    def one(at: Array, valid: Array, x: Array) -> Array:
        taken = jnp.take(x, at, axis=0, mode="clip")
        return jnp.where(_like(valid, taken), taken, jnp.zeros((), x.dtype))

    return _by_example(one, at, edges.valid, x)


def edge_sum(x: Array, edges: Edges, nodes: int) -> Array:
    """The sum of x (B,E,...) over the edges of each of `nodes` receivers, (B,T,...), wide."""

    def one(at: Array, valid: Array, x: Array) -> Array:
        x = jnp.where(_like(valid, x), x, 0.0)
        return jax.ops.segment_sum(x, at, nodes, indices_are_sorted=True)

    return _by_example(one, edges.receivers, edges.valid, wide(x))


def segment_softmax(scores: Array, edges: Edges, nodes: int) -> Array:
    """Weights of scores (B,E,...), wide, that sum to 1 at each receiver; padding has 0."""

    def largest(at: Array, valid: Array, s: Array) -> Array:
        s = jnp.where(_like(valid, s), s, -jnp.inf)
        top = jax.ops.segment_max(s, at, nodes, indices_are_sorted=True)
        return jnp.where(jnp.isfinite(top), top, 0.0)

    scores = wide(scores)
    top = _by_example(largest, edges.receivers, edges.valid, lax.stop_gradient(scores))
    shifted = scores - of_receivers(top, edges)
    valid = _like(jnp.broadcast_to(edges.valid, scores.shape[:2]), scores)
    terms = jnp.where(valid, jnp.exp(jnp.where(valid, shifted, 0.0)), 0.0)
    return divide(terms, of_receivers(edge_sum(terms, edges, nodes), edges))


def edge_attend(scores: OfEdges, values: Array, edges: Edges, nodes: int) -> Array:
    """sum_e A_e v_e at each of `nodes` receivers: scores (B,E,N), values (B,E,N,D) -> (B,T,N,D).

    A node without edges gets zero.  In the values' dtype.
    """
    weights = segment_softmax(scores, edges, nodes)
    return edge_sum(weights[..., None] * wide(values), edges, nodes).astype(values.dtype)


def _by_example(fn: Callable[..., Array], at: Array, valid: Array, x: Array) -> Array:
    shared = None if at.ndim == 1 else 0
    return jax.vmap(fn, in_axes=(shared, shared, 0))(at, valid, x)


def _like(per_edge: Bool[Array, "*B E"], x: Array) -> Array:
    return per_edge.reshape(*per_edge.shape, *(1,) * (x.ndim - per_edge.ndim))


# ------------------------------------------------------------------------ neighborhood attention


def neighbor_scores(q: Nodes, k: Senders, edges: Edges) -> OfEdges:
    """q_i . k_j / sqrt(H) of each edge, wide."""
    q, k = of_receivers(wide(q), edges), of_senders(wide(k), edges)
    return jnp.sum(q * k, axis=-1) / math.sqrt(q.shape[-1])


@on_any_mesh
def neighbor_attention(q: Nodes, k: Senders, v: Float[Array, "B S N D"], edges: Edges) -> Out:
    """Softmax attention of each node to the senders of its edges."""
    scores = neighbor_scores(q, k, edges)
    return edge_attend(scores, of_senders(v, edges), edges, q.shape[1])


@on_any_mesh
def neighbor_distillation(
    q: Nodes,
    k: Senders,
    teacher: Float[Array, "B E M"],
    edges: Edges,
) -> Float[Array, ""]:
    """KL(teacher's weights || ours) over the edges of a node, both the mean over heads.

    `teacher` are its weights, `segment_softmax(neighbor_scores(...))`, of M heads, through which
    gradients flow; the mean is over nodes that have edges.  Weights of ours below the square of a
    rounding error count as that.
    """
    nodes = q.shape[1]
    ours = jnp.mean(segment_softmax(neighbor_scores(q, k, edges), edges, nodes), axis=-1)
    theirs = jnp.mean(wide(teacher), axis=-1)
    log = lambda w: jnp.log(jnp.where(w > 0, w, 1.0))
    there = (theirs > 0) & jnp.broadcast_to(edges.valid, theirs.shape)
    floor = jnp.square(jnp.finfo(ours.dtype).eps)
    gap = log(theirs) - jnp.log(jnp.maximum(ours, floor))
    degree = edge_sum(jnp.ones_like(theirs), edges, nodes)
    total = jnp.sum(jnp.where(there, theirs * gap, 0.0))
    return total / jnp.maximum(jnp.sum(jnp.where(degree > 0, 1.0, 0.0)), 1.0)


# ------------------------------------------------------------------------------------ the record


def drawn_edges(z: Sizes) -> Edges:
    """A graph for tests: nodes hear a few nodes, node 1 none, and some edges are padding."""
    return edges_of(*_drawn(z))


def _drawn(z: Sizes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Senders, receivers, and which of these edges there are."""
    T, S = z["T"], z["S"]
    rng = np.random.default_rng(T + 100 * S)
    near = np.unique(np.stack([np.arange(4 * T) % T, rng.integers(0, S, 4 * T)]), axis=1)
    receivers, senders = rng.permutation(near, axis=1)
    there = (receivers != 1) & (rng.random(len(senders)) < 0.9)
    return senders, receivers, there | (receivers == 0)


def all_pairs(z: Sizes) -> Edges:
    """Every sender to every receiver."""
    receivers, senders = np.divmod(np.arange(z["T"] * z["S"]), z["S"])
    return edges_of(senders, receivers)


GRAPH: dict[str, Any] = {"edges": by_sizes(drawn_edges)}
COMPLETE: dict[str, Any] = {"edges": by_sizes(all_pairs)}


def _teacher(slot: Slot) -> np.ndarray:
    """Weights for the edges that are drawn beside, sorted as they are."""
    _, receivers, there = _drawn(slot.sizes)
    receivers = np.sort(np.where(there, receivers, slot.sizes["T"]))
    shape = (slot.sizes["B"], len(receivers), slot.sizes["M"])
    terms = np.exp(slot.rng.standard_normal(shape))
    same = receivers[:, None] == receivers
    return np.where(np.sort(~there)[:, None], 0.0, terms / (same @ terms))


OPS = (
    Op(
        neighbor_attention,
        papers=(253,),
        reads="all",
        draw=GRAPH,
        limits=(Limit("all pairs are softmax attention", COMPLETE, multi_head_attention),),
    ),
    Op(
        neighbor_distillation,
        papers=(253,),
        draw={**GRAPH, "teacher": Draw(_teacher)},
    ),
)
