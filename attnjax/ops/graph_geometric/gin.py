"""GIN attention: the map as the edges of a graph isomorphism network, one for each head.

    out_i = net(eps v_i + sum_j A_ij v_j),    net(x) = silu(g rms(x W_1 + b_1)) W_2 + b_2

with A causal softmax attention and v the head's part of the hidden state itself, without a map.

Paper: Buehler, "Graph-Aware Isomorphic Attention for Adaptive Dynamics in Transformers", 2025,
arXiv:2501.02393; code: lamm-mit/Graph-Aware-Transformers.
Limits: W_2 = 0 is b_2 alone.
Differs: the paper has 1 + eps for the code's eps, which starts at 0. The output map, dropout,
rotary positions and a learned sharpness, a factor of q, belong to a layer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import silu

from attnjax.core import masks
from attnjax.core.numerics import aligned, einsum, repeat_heads, rms_norm, wide
from attnjax.core.pairwise.attend import attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float, Out, PerHead, Q, TokenK, TokenV


class HeadNets(NamedTuple):
    """The network of each head."""

    first: Float[Array, "N D M"]
    first_bias: Float[Array, "N M"]
    gain: Float[Array, "N M"]
    second: Float[Array, "N M D"]
    second_bias: Float[Array, "N D"]

    def __call__(self, x: Array) -> Array:
        h = einsum("BTND,NDM->BTNM", x, self.first)
        h = rms_norm(h + aligned(self.first_bias, h)) * aligned(self.gain, h)
        y = einsum("BTNM,NMD->BTND", silu(h), self.second)
        return y + aligned(self.second_bias, y)


@on_any_mesh
def gin_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    nets: HeadNets,
    eps: PerHead,
    *,
    mask: masks.Mask = masks.causal,
) -> Out:
    """Attention whose sums, and eps of a token's own value, go through a network."""
    nets, values = jax.tree.map(wide, nets), wide(repeat_heads(v, q))
    own = wide(eps)[None, None, :, None] * values
    return nets(own + attend(wide(q), wide(k), wide(v), mask=mask)).astype(q.dtype)


def _flat(nets: HeadNets) -> HeadNets:
    return nets._replace(second=jnp.zeros_like(nets.second))


def _bias(q: Q, nets: HeadNets) -> Out:
    D = nets.second_bias.shape[-1]
    return jnp.broadcast_to(nets.second_bias[None, None], (*q.shape[:-1], D))


_OWN = "a token's own value and the biases go through the network"
OPS = (
    Op(
        gin_attention,
        papers=(249,),
        limits=(Limit("W_2 = 0 is b_2 alone", {"nets": adjusted(_flat)}, _bias),),
        exempt={"padding": _OWN, "empty_rows": _OWN},
    ),
)
