"""Stick-breaking attention: the nearest key takes its share first, others of what is left.

    A_ij = sigmoid(z_ij) prod_{j < l < i} (1 - sigmoid(z_il)),    z_ij = q_i . k_j / sqrt(H),  j < i
    o_i = sum_{j < i} A_ij v_j + (1 - sum_{j < i} A_ij) v_i

Weights know the order of the keys, so no positions are needed.

Paper: Tan, Yang, Courville, Panda and Shen, "Scaling Stick-Breaking Attention: An Efficient
Implementation and In-depth Study", 2024, arXiv:2410.17980; code: shawntan/stickbreaking-attention.
Limits: q = 0 breaks the stick in halves: sum_{j < i} 2^(j - i) v_j + 2^-i v_i.
Differs: the code gives the remainder beside the sum, and its model adds it times the own value;
here that is part of the op.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.dispatch import compiled
from attnjax.core.numerics import einsum, repeat_heads, wide
from attnjax.core.pairwise.outward import Tile, attend_outward, behind
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


class Past(NamedTuple):
    """Keys and values of all tokens so far."""

    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K D"]


@on_any_mesh
@compiled("block", "return_state")
def stick_breaking_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    block: int = 128,
    state: Past | None = None,
    return_state: bool = False,
) -> Any:
    """Causal; O(T) memory, by tiles of `block` tokens."""
    past = behind(state, Past(k, v))
    keys, values = repeat_heads(past.k, q), repeat_heads(past.v, q)
    closed = jnp.zeros((*q.shape[:3], 1), wide(q).dtype)
    met = attend_outward(_break, q, keys, values, closed, block=block)
    left = jnp.exp(-met.carry)
    taken = jnp.exp(met.log_mass)[..., None] * met.mean
    out = (taken + left * repeat_heads(v, q)).astype(v.dtype)
    return (out, past) if return_state else out


def _break(carry: Array, tile: Tile) -> tuple[Array, Array]:
    """The carry is minus the logarithm of what is left of the stick, (B,N,t,1)."""
    q, k = tile.queries, tile.keys
    z = einsum("BNtH,BNsH->BNts", q, k) / math.sqrt(q.shape[-1])
    before = tile.ok & (tile.k_at < tile.q_at)
    taken = jnp.where(before, jax.nn.softplus(z), 0.0)
    nearer = lax.cumsum(taken, axis=3, reverse=True)  # this key's own included
    log_weight = jnp.where(before, z - nearer - carry, -jnp.inf)
    return log_weight, carry + jnp.sum(taken, axis=-1, keepdims=True)


def _halves(q: Q, v: TokenV) -> Out:
    T = q.shape[1]
    gap = np.subtract.outer(np.arange(T), np.arange(T))
    share = np.where(gap > 0, 0.5 ** np.maximum(gap, 0), 0.0) + np.diag(0.5 ** np.arange(T))
    return jnp.einsum("ts,BsND->BtND", jnp.asarray(share, v.dtype), repeat_heads(v, q))


OPS = (
    Op(
        stick_breaking_attention,
        draw={"block": 4},
        limits=(Limit("q = 0 breaks the stick in halves", {"q": fill(0.0)}, _halves),),
    ),
)
