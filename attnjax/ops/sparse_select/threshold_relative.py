"""Threshold relative attention: weak keys leave, and distances count the keys that stay.

    s_ij = q_i . k_j / sqrt(H),    m_ij = [s_ij > theta],    d_ij = sum_{j < l <= i} m_il
    o_i = sum_j softmax_j(s_ij + d_ij log f_i) v_j                          j <= i with m_ij = 1
    o_i = sum_j softmax_j(s_ij + sum_{j < l <= i} m_il log f_l) v_j         by the keys' gates

A query without such keys gives zero.

Paper: Opper, Fernandez, Smolensky and Gao, "TRA: Better Length Generalisation with Threshold
Relative Attention", 2025, arXiv:2503.23174.
Limits: f = 1 is attention to the keys above theta; theta = -infinity with the keys' gates is
forgetting attention, with the queries' a linear bias by distance.
Differs: no code is public; whose gate fades, the query's or those of the keys between, is not told
by what was at hand: both are our reading.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from attnjax.core import masks, mods
from attnjax.core.dispatch import compiled
from attnjax.core.numerics import einsum, repeat_heads, wide
from attnjax.core.pairwise.attend import attend
from attnjax.core.pairwise.outward import Tile, attend_outward
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, log_gates
from attnjax.ops.softmax_core.forgetting import forgetting_attention
from attnjax.typing import Array, Out, PerQuery, Q, TokenK, TokenV


@on_any_mesh
@compiled("theta", "block")
def threshold_relative_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_f: PerQuery,
    *,
    theta: float = 0.0,
    block: int = 128,
) -> Out:
    """By the queries' gates, log_f <= 0.  No gradient flows through the threshold."""
    return _attend(q, k, v, wide(log_f), jnp.zeros_like(wide(log_f)), theta, block)


@on_any_mesh
@compiled("theta", "block")
def threshold_forgetting_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_f: PerQuery,
    *,
    theta: float = 0.0,
    block: int = 128,
) -> Out:
    """By the gates of the keys that stay between, log_f <= 0."""
    return _attend(q, k, v, jnp.zeros_like(wide(log_f)), wide(log_f), theta, block)


def _attend(
    q: Q, k: TokenK, v: TokenV, of_query: PerQuery, of_keys: PerQuery, theta: float, block: int
) -> Out:
    """With a step of of_query_i + of_keys_l for each key l that stays."""
    met = attend_outward(
        functools.partial(_fade, theta),
        (q, of_query[..., None]),
        (repeat_heads(k, q), of_keys[..., None]),
        repeat_heads(v, q),
        jnp.zeros_like(of_query)[..., None],
        block=block,
    )
    return met.mean.astype(v.dtype)


def _fade(theta: float, carry: Array, tile: Tile) -> tuple[Array, Any]:
    """The carry is the sum of the steps, (B,N,t,1)."""
    (q, of_query), (k, of_key) = tile.queries, tile.keys
    s = einsum("BNtH,BNsH->BNts", q, k) / math.sqrt(q.shape[-1])
    stays = jnp.where(tile.ok, s > theta, False)
    steps = jnp.where(stays, of_query + jnp.swapaxes(of_key, 2, 3), 0.0)
    none = jnp.zeros_like(steps[..., :1])
    nearer = lax.cumsum(jnp.concatenate([steps[..., 1:], none], axis=-1), axis=3, reverse=True)
    faded = s + nearer + carry
    return jnp.where(stays, faded, -jnp.inf), carry + jnp.sum(steps, axis=-1, keepdims=True)


def _above_zero(q: Q, k: TokenK, v: TokenV) -> Out:
    """Attention to the keys with positive scores."""
    strong = mods.mod(lambda s: jnp.where(s > 0, s, -jnp.inf))
    return attend(q, k, v, mods=(strong,), mask=masks.causal)


def _linear_bias(q: Q, k: TokenK, v: TokenV) -> Out:
    slopes = jnp.full(q.shape[2], 0.3)
    return attend(q, k, v, mods=(mods.alibi(slopes),), mask=masks.causal)


_LIMITS = (Limit("f = 1: the keys above theta", {"log_f": fill(0.0)}, _above_zero),)
_ALL = {"theta": -math.inf}
OPS = (
    Op(
        threshold_relative_attention,
        papers=(219,),
        draw={"log_f": log_gates, "block": 4},
        limits=(
            *_LIMITS,
            Limit("theta = -infinity: a linear bias", _ALL | {"log_f": fill(-0.3)}, _linear_bias),
        ),
    ),
    Op(
        threshold_forgetting_attention,
        papers=(219,),
        draw={"log_f": log_gates, "block": 4},
        limits=(
            *_LIMITS,
            Limit("theta = -infinity: forgetting attention", _ALL, forgetting_attention),
        ),
    ),
)
