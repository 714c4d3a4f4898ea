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

import jax.numpy as jnp
from jax.nn import sigmoid

from attnjax.core.numerics import divide_stably, repeat_heads, wide
from attnjax.core.recurrence.linear import Impl, State, linear_attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.linear import mean_so_far
from attnjax.typing import Array, Float, Int, Out, Q, TokenK, TokenV


class FlowState(NamedTuple):
    """Sums over the tokens so far: of phi(k), phi(q), of both per flow, and of exp(source)."""

    sums: State | None  # None before the first token
    tokens: Int[Array, ""]
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
    state: FlowState | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Linear time; the state also counts the tokens."""
    sinks = sigmoid(wide(q))
    sources = repeat_heads(sigmoid(wide(k)), q)
    values = repeat_heads(wide(v), q)
    before = _nothing(sinks) if state is None else state
    tokens = before.tokens + jnp.arange(1, q.shape[1] + 1, dtype=jnp.int32)
    i = tokens[None, :, None, None].astype(sinks.dtype)

    keys = _so_far(sources, before.keys)
    queries = _so_far(sinks, before.queries)
    sinks_in = divide_stably(sinks, _dot(sinks, keys))
    sources_out = divide_stably(sources, _dot(sources, queries))
    keys_out = _so_far(i * sources_out, before.keys_out)
    queries_in = _so_far(i * sinks_in, before.queries_in)
    sink = _dot(sinks, keys_out) / i
    source = _dot(sources, queries_in) / i

    e = jnp.exp(jnp.minimum(source, 1.0))
    competition = _so_far(e, before.competition)
    u = i * e / competition * values
    out, sums = linear_attend(sinks_in, sources, u, state=before.sums, return_state=True, impl=impl)
    out = (sigmoid(sink) * out).astype(v.dtype)
    last = (x[:, -1] for x in (keys, queries, keys_out, queries_in, competition))
    return (out, FlowState(sums, tokens[-1], *last)) if return_state else out


def _nothing(sinks: Float[Array, "B T N H"]) -> FlowState:
    """The state before the first token."""
    flow = jnp.zeros_like(sinks[:, 0])
    return FlowState(None, jnp.int32(0), flow, flow, flow, flow, flow[..., :1])


def _so_far(x: Float[Array, "B T N H"], before: Float[Array, "B N H"]) -> Float[Array, "B T N H"]:
    """The sum of x over the tokens up to each, those of the state included."""
    return jnp.cumsum(x, axis=1) + before[:, None]


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
