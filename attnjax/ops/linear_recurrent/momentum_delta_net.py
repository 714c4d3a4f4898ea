"""Momentum DeltaNet: corrections of the delta rule gather in a momentum, which moves the memory.

    M_t = mu_t M_{t-1} + eta_t k_t (v_t - a_t k_t . S_{t-1})^T
    S_t = a_t S_{t-1} + beta_t M_t,    o_t = q_t . S_t

with q and k of length 1, a = exp(log_decay) and mu = exp(log_momentum).

Paper: Behrouz, Zhong and Mirrokni, "Titans: Learning to Memorize at Test Time", 2024,
arXiv:2501.00663, whose memory it is for a matrix; code: fla-org's flash-linear-attention,
momentum_delta_rule.
Limits: mu = 0 is gated_delta_net with strength beta eta.
Differs: M is minus the reference's. flash-linear-attention scales q by 1/sqrt(H), left out here,
and can read by keys of their own, without a; its layer makes beta, eta and the gates.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.dispatch import compiled
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.recurrence.coupled import Coupled, Writes, coupled_attend
from attnjax.core.recurrence.documents import Documents, packed
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, log_gates, uniform
from attnjax.ops.linear_recurrent.gated_delta_net import gated_delta_net
from attnjax.typing import Array, Int, Out, PerQuery, Q, TokenK, TokenV


class State(NamedTuple):
    """S and M, and where there are documents the id of the last token's."""

    states: Coupled
    document: Int[Array, " B"] | None = None


@on_any_mesh
@compiled("chunk", "return_state")
def momentum_delta_net(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_decay: PerQuery,
    log_momentum: PerQuery,
    beta: PerQuery,
    eta: PerQuery,
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    chunk: int = 64,
) -> Any:
    """log_decay and log_momentum are <= 0; beta, of what moves, and eta, of what is learned, >= 0.

    `documents` are ids of packed documents, as `linear_attend` takes them.
    """
    q, keys = features.cosine(wide(q)), repeat_heads(features.cosine(wide(k)), q)
    gates = [x[..., None] for x in map(wide, (log_decay, log_momentum, beta, eta))]
    of = packed(documents, q.shape[:2], None if state is None else state.document)
    starts, values = jnp.zeros_like(gates[0]), repeat_heads(wide(v), q)
    if of is not None:
        *gates, values = map(of.without_padding, (*gates, values))
        starts = starts + of.starts[..., None, None].astype(starts.dtype)
    log_a, log_mu, b, eta = gates
    # eta weighs what is written: k by it
    tokens = Writes(q, eta * keys, values, jnp.exp(log_a) * keys, log_a, log_mu, b, starts)
    out, states = coupled_attend(tokens, None if state is None else state.states, chunk=chunk)
    out = (out if of is None else of.without_padding(out)).astype(v.dtype)
    return (out, State(states, None if of is None else of.last)) if return_state else out


def _without_momentum(
    q: Q, k: TokenK, v: TokenV, log_decay: PerQuery, beta: PerQuery, eta: PerQuery
) -> Out:
    return gated_delta_net(q, k, v, beta * eta, log_decay)


OPS = (
    Op(
        momentum_delta_net,
        draw={
            "log_decay": log_gates,
            "log_momentum": log_gates,
            "beta": uniform(0.1, 0.9),
            "eta": uniform(0.1, 0.9),
            "chunk": 4,
        },
        limits=(
            Limit("mu = 0 is gated_delta_net", {"log_momentum": fill(-100.0)}, _without_momentum),
        ),
    ),
)
