"""Interactive attention: bounded scores and a learned map of tokens, without a softmax.

    A_ij = alpha_n tanh(q_i . k_j / H) + M_n[i, j],    out_i = sum_j A_ij v_j

A token is a window of time, joints and persons, `rows` cells of R channels each, and H = rows R: q
and k are the cells' maps one behind the other. The values of every head are the token x itself, as
it is. Heads, one behind the other, then go through a convolution along the tokens, a norm, plus x,
a leaky relu; a map, a norm, plus x, a leaky relu; and a convolution in time, likewise.

Paper: Wen et al., "Interactive Spatiotemporal Token Attention Network for Skeleton-based General
Interactive Action Recognition", 2023, arXiv:2307.07469, section III; code: Necolizer/ISTA-Net.
Limits: alpha = 0 mixes tokens by M alone.
Differs: in the code the token that is read has the role of the query: what it calls queries are our
keys, and its M is transposed.
"""

import jax.numpy as jnp

from attnjax.core import mods, normalizers
from attnjax.core.numerics import repeat_heads
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, K, Out, PerHead, Q, V


@of_whole_text
def interactive_attention(
    q: Q, k: K, v: V, alpha: PerHead, mixing: Float[Array, "N T S"], *, impl: Impl = None
) -> Out:
    """Weights within alpha of the learned ones; alpha 1 and 1 / S for all pairs to begin with."""
    bounded = mods.mod(_bounded, head=alpha, pair=mixing[None])
    scale = 1 / q.shape[3]
    return attend(q, k, v, mods=(bounded,), normalizer=normalizers.identity, scale=scale, impl=impl)


def _bounded(score: Array, alpha: Array, mixing: Array) -> Array:
    return alpha * jnp.tanh(score) + mixing


def _mixed(q: Q, v: V, mixing: Array) -> Out:
    return jnp.einsum("NTS,BSND->BTND", mixing, repeat_heads(v, q))


OPS = (
    Op(
        interactive_attention,
        papers=(198,),
        reads="all",
        limits=(Limit("alpha = 0 mixes by M alone", {"alpha": fill(0.0)}, _mixed),),
    ),
)
