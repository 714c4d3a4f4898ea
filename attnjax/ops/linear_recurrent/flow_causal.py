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

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.nn import sigmoid

from attnjax.core.numerics import divide_stably, repeat_heads, wide
from attnjax.core.recurrence.documents import sums_so_far
from attnjax.core.recurrence.linear import (
    Documents,
    Impl,
    State,
    linear_attend,
    packed_documents,
)
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.linear import mean_so_far
from attnjax.typing import Array, Float, Int, Out, Q, TokenK, TokenV


class FlowState(NamedTuple):
    """Sums over a document's tokens so far: phi(k), phi(q), both per flow, and exp(source)."""

    sums: State | None  # None before the first token
    tokens: Int[Array, " B"]
    keys: Float[Array, "B N H"]
    queries: Float[Array, "B N H"]
    keys_out: Float[Array, "B N H"]
    queries_in: Float[Array, "B N H"]
    competition: Float[Array, "B N 1"]


@on_any_mesh
def flow_attention_causal(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    documents: Documents | None = None,
    state: FlowState | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Linear time; the state also counts the tokens of the document."""
    sinks = sigmoid(wide(q))
    sources = repeat_heads(sigmoid(wide(k)), q)
    values = repeat_heads(wide(v), q)
    before = _nothing(sinks) if state is None else state
    of = packed_documents(documents, q, before.sums, impl)
    so_far = functools.partial(sums_so_far, documents=of, impl=impl)
    counts, tokens = so_far(jnp.ones(q.shape[:2], jnp.int32), before.tokens)
    i = jnp.maximum(counts, 1)[..., None, None].astype(sinks.dtype)  # padding may come first

    keys, last_keys = so_far(sources, before.keys)
    queries, last_queries = so_far(sinks, before.queries)
    sinks_in = divide_stably(sinks, _dot(sinks, keys))
    sources_out = divide_stably(sources, _dot(sources, queries))
    keys_out, last_keys_out = so_far(i * sources_out, before.keys_out)
    queries_in, last_queries_in = so_far(i * sinks_in, before.queries_in)
    sink = _dot(sinks, keys_out) / i
    source = _dot(sources, queries_in) / i

    e = jnp.exp(jnp.minimum(source, 1.0))
    competition, last_competition = so_far(e, before.competition)
    u = divide_stably(i * e, competition) * values
    out, sums = linear_attend(
        sinks_in, sources, u, documents=documents, state=before.sums, return_state=True, impl=impl
    )
    out = (sigmoid(sink) * out).astype(v.dtype)
    last = last_keys, last_queries, last_keys_out, last_queries_in, last_competition
    return (out, FlowState(sums, tokens, *last)) if return_state else out


def _nothing(sinks: Float[Array, "B T N H"]) -> FlowState:
    """The state before the first token."""
    flow = jnp.zeros_like(sinks[:, 0])
    tokens = jnp.zeros_like(flow, jnp.int32, shape=len(flow))
    return FlowState(None, tokens, flow, flow, flow, flow, flow[..., :1])


def _dot(x: Float[Array, "B T N H"], y: Float[Array, "B T N H"]) -> Float[Array, "B T N 1"]:
    return jnp.sum(x * y, axis=-1, keepdims=True)


def _uniform(q: Q, v: TokenV) -> Out:
    return sigmoid(1.0) * mean_so_far(q, v)


OPS = (
    Op(
        flow_attention_causal,
        papers=(322,),
        limits=(
            Limit(
                "q = k = 0 gives the mean of the values so far times sigmoid(1)",
                {"q": fill(0.0), "k": fill(0.0)},
                _uniform,
            ),
        ),
    ),
)
