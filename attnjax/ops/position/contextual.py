"""CoPE: the place of a key is how many of the tokens from it to the query count, by a soft gate.

    s_ij = q_i . k_j / sqrt(H),    p_ij = min(sum_{j <= l <= i} sigmoid(s_il), P - 1)
    o_i = sum_j softmax_j(s_ij + q_i . e[p_ij]) v_j,    j <= i

with e[p] between those of the neighboring integers, P of which are learned.

Paper: Golovneva, Wang, Weston and Sukhbaatar, "Contextual Position Encoding: Learning to Count
What's Important", 2024, arXiv:2405.18719, section 4 and the code in its appendix.
Limits: e = 0 is causal softmax attention; k = 0 makes every token count a half.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core import mods
from attnjax.core.dispatch import compiled
from attnjax.core.masks import causal
from attnjax.core.numerics import einsum, repeat_heads, wide
from attnjax.core.pairwise.attend import attend
from attnjax.core.pairwise.outward import Tile, attend_outward, behind
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


class Past(NamedTuple):
    """Keys and values of all tokens so far."""

    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K D"]


@on_any_mesh
@compiled("block", "return_state")
def contextual_position_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    table: Float[Array, "N P H"],
    *,
    block: int = 128,
    state: Past | None = None,
    return_state: bool = False,
) -> Any:
    """Causal; O(T) memory, by tiles of `block` tokens.  `table` holds e, of each head."""
    past = behind(state, Past(k, v))
    keys, values = repeat_heads(past.k, q), repeat_heads(past.v, q)
    at_places = einsum("BTNH,NPH->BTNP", q, table)
    none = jnp.zeros((*q.shape[:3], 1), wide(q).dtype)
    met = attend_outward(_count, (q, at_places), keys, values, none, block=block)
    out = met.mean.astype(v.dtype)
    return (out, past) if return_state else out


def _count(carry: Array, tile: Tile) -> tuple[Array, Array]:
    """The carry is how many tokens have counted, (B,N,t,1)."""
    (q, at_places), k = tile.queries, tile.keys
    s = einsum("BNtH,BNsH->BNts", q, k) / math.sqrt(q.shape[-1])
    gates = jnp.where(tile.ok, jax.nn.sigmoid(s), 0.0)
    last = at_places.shape[-1] - 1
    place = jnp.minimum(lax.cumsum(gates, axis=3, reverse=True) + carry, last)
    low = lax.stop_gradient(jnp.floor(place))
    scores_at = lambda n: jnp.take_along_axis(at_places, n.astype(jnp.int32), axis=3)
    below, above = scores_at(low), scores_at(jnp.minimum(low + 1, last))
    between = below + (place - low) * (above - below)
    return s + between, carry + jnp.sum(gates, axis=-1, keepdims=True)


def _halves(q: Q, k: TokenK, v: TokenV, table: Float[Array, "N P H"]) -> Out:
    """Key j stands (i - j + 1) / 2 before query i."""
    T, last = q.shape[1], table.shape[1] - 1
    gap = jnp.arange(T)[:, None] - jnp.arange(T)[None] + 1
    place = jnp.clip(gap / 2, 0, last)
    low = jnp.floor(place).astype(jnp.int32)
    scores = jnp.einsum("BTNH,NPH->BNTP", q, table)
    at = lambda n: jnp.take_along_axis(scores, jnp.broadcast_to(n, (*scores.shape[:3], T)), 3)
    bias = at(low) + (place - low) * (at(jnp.minimum(low + 1, last)) - at(low))
    return attend(q, k, v, mods=(mods.pair_bias(bias),), mask=causal, impl="dense")


OPS = (
    Op(
        contextual_position_attention,
        draw={"block": 4},
        sizes={"P": 4},
        limits=(
            Limit("e = 0 is causal softmax attention", {"table": fill(0.0)}, causal_attention),
            Limit("k = 0 makes every token count a half", {"k": fill(0.0)}, _halves),
        ),
    ),
)
