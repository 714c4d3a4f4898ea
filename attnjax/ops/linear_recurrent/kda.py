"""Kimi Delta Attention: the delta rule on a state of which each key channel fades by its own gate.

    S_t = (I - beta_t k_t k_t^T) diag(a_t) S_{t-1} + beta_t k_t v_t^T,    o_t = q_t . S_t

with q and k of length 1, beta_t how much of the correction is made, and a_t = exp(log_decay_t).

Paper: Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture", 2025,
arXiv:2510.26692.
Limits: equal channels make it gated_delta_net; beta = 0 writes nothing.
Differs: the activation of q and k, the short convolutions, the low-rank projection of the gate
-exp(A) softplus(x W + b), the output norm and its gate belong to a layer. flash-linear-attention
scales q by 1/sqrt(H), left out here.
"""

from typing import Any

import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.op import Limit, Op, fill, log_gates, uniform
from attnjax.ops.linear_recurrent.gated_delta_net import gated_delta_net
from attnjax.typing import Array, Float, Out, PerQuery, Q, TokenK, TokenV


def kda(
    q: Q,
    k: TokenK,
    v: TokenV,
    beta: PerQuery,
    log_decay: Float[Array, "B T N H"],
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """The delta rule on a state of which each key channel fades by exp(log_decay) before."""
    return linear_attend(
        features.cosine(wide(q)),
        features.cosine(wide(k)),
        v,
        log_decay=log_decay,
        beta=beta,
        documents=documents,
        state=state,
        return_state=return_state,
        impl=impl,
    )


def _one_decay(q: Q, k: TokenK, v: TokenV, beta: PerQuery) -> Out:
    return gated_delta_net(q, k, v, beta, jnp.full(beta.shape, -0.3))


OPS = (
    Op(
        kda,
        draw={"beta": uniform(0.1, 0.9), "log_decay": log_gates},
        limits=(
            Limit(
                "equal channels make it gated_delta_net",
                {"log_decay": fill(-0.3)},
                _one_decay,
            ),
            Limit(
                "beta = 0 writes nothing",
                {"beta": fill(0.0)},
                lambda q, v: jnp.zeros((*q.shape[:-1], v.shape[-1])),
            ),
        ),
    ),
)
