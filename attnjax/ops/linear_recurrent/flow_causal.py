"""Causal flow attention: every sum of flow attention runs over the tokens so far.

    incoming_i = phi(q_i) . K_i,    outgoing_i = phi(k_i) . Q_i,    K, Q: sums of phi(k), phi(q)
    sink_i = phi(q_i) . sum_{j <= i} (j phi(k_j) / outgoing_j) / i,    source_i likewise
    e_i = exp(min(source_i, 1)),    u_i = i e_i / (sum_{j <= i} e_j) v_i
    o_i = sigmoid(sink_i) phi(q_i) / incoming_i . sum_{j <= i} phi(k_j) u_j^T,    phi = sigmoid

with positions i, j from 1: sums over i tokens are compared as means.

Paper: Wu, Wu, Xu, Wang and Long, "Flowformer: Linearizing Transformers with Conservation Flows",
2022, arXiv:2202.06258, and its code, where the positions are.
Limits: q = k = 0 gives the mean of the values so far times sigmoid(1).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import divide_stably, repeat_heads, wide
from attnjax.core.pairwise.attend import attend
from attnjax.core.recurrence.linear import Impl, State, linear_attend
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, Int, Q, TokenK, TokenV


class FlowState(NamedTuple):
    """Sums over the tokens so far: of phi(k), phi(q), of both per flow, and of exp(source)."""

    sums: State
    tokens: Int[Array, ""]
    keys: Float[Array, "B N H"]
    queries: Float[Array, "B N H"]
    keys_out: Float[Array, "B N H"]
    queries_in: Float[Array, "B N H"]
    competition: Float[Array, "B N 1"]


def flow_attention_causal(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    state: FlowState | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Linear time; the state also counts the tokens."""
    heads = lambda x: repeat_heads(x, q)
    sinks, sources = jax.nn.sigmoid(wide(q)), heads(jax.nn.sigmoid(wide(k)))
    tokens = (0 if state is None else state.tokens) + jnp.arange(1, q.shape[1] + 1, dtype=jnp.int32)
    i = tokens[:, None, None].astype(sinks.dtype)
    so_far = lambda x, name: (
        jnp.cumsum(x, axis=1) + (0.0 if state is None else getattr(state, name)[:, None])
    )
    keys, queries = so_far(sources, "keys"), so_far(sinks, "queries")
    sinks_in = divide_stably(sinks, _dot(sinks, keys))
    keys_out = so_far(i * divide_stably(sources, _dot(sources, queries)), "keys_out")
    queries_in = so_far(i * sinks_in, "queries_in")
    e = jnp.exp(jnp.minimum(_dot(sources, queries_in) / i, 1.0))
    competition = so_far(e, "competition")
    competing = i * e / competition * heads(wide(v))
    before = None if state is None else state.sums
    out = linear_attend(sinks_in, sources, competing, state=before, return_state=True, impl=impl)
    result = (jax.nn.sigmoid(_dot(sinks, keys_out) / i) * out[0]).astype(v.dtype)
    last = [x[:, -1] for x in (keys, queries, keys_out, queries_in, competition)]
    return (result, FlowState(out[1], tokens[-1], *last)) if return_state else result


def _dot(x: Array, y: Array) -> Array:
    return jnp.sum(x * y, axis=-1, keepdims=True)


OPS = (
    Op(
        flow_attention_causal,
        papers=(322,),
        limits=(
            Limit(
                "q = k = 0 gives the mean of the values so far times sigmoid(1)",
                {"q": fill(0.0), "k": fill(0.0)},
                lambda q, k, v: jax.nn.sigmoid(1.0) * attend(q, k, v, mask=masks.causal),
            ),
        ),
    ),
)
