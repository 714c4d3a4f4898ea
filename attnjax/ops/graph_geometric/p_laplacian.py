"""p-Laplacian adapter: an attention map as a graph, whose edges weigh by how far its nodes differ.

    M_ij = A_ij |sqrt(A_ij + e) (y_j - x_i) + e|^(p - 2),    e = 1e-8
    out_i = (sum_j M_ij y_j + (2 mu / p) x_i) / (sum_j M_ij + 2 mu / p)

For p < 2 nodes that differ weigh less, for heterophilic maps more of what is alike; e is added to
each number, so that a node's weight to itself stays finite. Between two sets of nodes, queries x
and values y, the term of x falls away.

Paper: Wu, Zhang, Xu, Liao, Yao and Yu, "p-Laplacian Adaptation for Generative Pre-trained
Vision-Language Models", 2024, arXiv:2312.10613; code: wuhy68/p-Adapter.
Limits: p = 2 weighs as the map does.
Differs: x is the value through the layer's output map and a map down to 1/8 of the width; the
adapter adds up(gelu(gate(h)) out) to the layer's output h. mu = mu_0 (2 + tanh(theta)) is learned,
with mu_0 = 0.1 or 10; values of images are averaged down to a fixed number before.
"""

import jax
import jax.numpy as jnp

from attnjax.core.numerics import einsum, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot
from attnjax.typing import Array, Float

Nodes = Float[Array, "B T N D"]
Map = Float[Array, "B N T _"]
Number = float | Float[Array, ""]

_E = 1e-8


@on_any_mesh
def p_laplacian(x: Nodes, weights: Map, *, p: Number = 1.25, mu: Number = 0.2) -> Nodes:
    """Nodes of a map among themselves.  O(T^2) differences of nodes are formed."""
    own = 2 * mu / p
    sums, total = _sums(x, x, weights, p)
    return ((sums + own * wide(x)) / (total + own)).astype(x.dtype)


@on_any_mesh
def p_laplacian_cross(
    x: Nodes, y: Float[Array, "B S N D"], weights: Map, *, p: Number = 1.25, mu: Number = 0.2
) -> Nodes:
    """Queries x and values y of a map between them."""
    sums, total = _sums(x, y, weights, p)
    return (sums / (total + 2 * mu / p)).astype(x.dtype)


def _sums(x: Nodes, y: Nodes, weights: Map, p: Number) -> tuple[Array, Array]:
    """(sum_j M_ij y_j, sum_j M_ij), (B,T,N,D) and (B,T,N,1)."""
    x, y, edges = wide(x), wide(y), jnp.moveaxis(wide(weights), 1, 3)  # (B,T,S,N)
    slopes = jnp.sqrt(edges + _E)[..., None] * (y[:, None] - x[:, :, None]) + _E
    length = jnp.sqrt(jnp.sum(jnp.square(slopes), axis=-1))
    heavy = edges * length ** (p - 2)
    return einsum("BTSN,BSND->BTND", heavy, y), jnp.sum(heavy, axis=2)[..., None]


def _rows(slot: Slot) -> Array:
    """The rows of a map sum to one."""
    return jax.nn.softmax(slot.normal("B N T S"), axis=-1)


def _average(x: Nodes, weights: Map) -> Nodes:
    total = jnp.swapaxes(jnp.sum(weights, axis=-1), 1, 2)[..., None]
    return (einsum("BNTS,BSND->BTND", weights, x) + 0.2 * x) / (total + 0.2)


OPS = (
    Op(
        p_laplacian,
        papers=(338,),
        reads="all",
        draw={"weights": Draw(_rows), "p": 1.5},
        limits=(Limit("p = 2 weighs as the map does", {"p": 2.0}, _average),),
    ),
    Op(p_laplacian_cross, papers=(338,), reads="all", draw={"weights": Draw(_rows), "p": 1.5}),
)
