"""CoulGAT: attention of a fixed set of nodes, by potentials whose powers are learned.

    S_i = softmax_j(potential_ij ^ power_ij),    g_j = x_j W + b_j
    out_i = sum_j softmax_j(leaky_relu(a_i . sum_k S_jk g_k)) g_j

potential_ij is 1 / distance^p or the like, > 0. Powers, a and b belong to a node and head, so that
powers can be read as how pairs of nodes couple.

Paper: Gokden, "CoulGAT: An Experiment on Interpretability of Graph Attention Networks", 2019,
arXiv:1912.08409; code: burcgokden/CoulGAT-Graph-Attention-Interpretability.
Limits: power = 0 looks at the mean of all nodes, with the same weight for each.
Differs: relu behind, the concatenation of heads or their mean in the last layer belong to a layer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import leaky_relu

from attnjax.core.numerics import aligned, einsum, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot, fill
from attnjax.typing import Array, Float, Out

PerNode = Float[Array, "N T D"]
Tokens = Float[Array, "B T W"]


@on_any_mesh
def coulomb_attention(
    x: Tokens,
    potential: Float[Array, "B T _"],
    power: Float[Array, "N T T"],
    w: Float[Array, "N W D"],
    b: PerNode,
    a: PerNode,
) -> Out:
    """Nodes x of one graph for all examples, potentials (B,i,j) of each: O(N T^2) memory."""
    g = einsum("BTW,NWD->BNTD", x, w)
    g = g + aligned(b, g)
    powers = wide(potential)[:, None] ** wide(power)[None]
    seen = einsum("BNTS,BNSD->BNTD", jax.nn.softmax(powers, axis=-1), g)
    scores = leaky_relu(einsum("NTD,BNSD->BNTS", a, seen), 0.2)
    return einsum("BNTS,BNSD->BTND", jax.nn.softmax(scores, axis=-1), g).astype(x.dtype)


def _positive(slot: Slot) -> np.ndarray:
    return slot.rng.uniform(0.2, 1.5, (slot.sizes["B"], slot.sizes["T"], slot.sizes["T"]))


def _mean(x: Tokens, w: Array, b: PerNode) -> Out:
    g = jnp.einsum("BTW,NWD->BTND", x, w) + jnp.swapaxes(b, 0, 1)[None]
    return jnp.broadcast_to(jnp.mean(g, axis=1, keepdims=True), g.shape)


OPS = (
    Op(
        coulomb_attention,
        papers=(108,),
        reads="all",
        draw={"potential": Draw(_positive)},
        limits=(Limit("power = 0 is the mean of all nodes", {"power": fill(0.0)}, _mean),),
    ),
)
