"""Gated linear attention: each key channel of the state fades by a gate of the token.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T,    o_t = q_t . S_t,    a_t = exp(log_decay_t)

Paper: Yang, Wang, Shen, Panda and Kim, "Gated Linear Attention Transformers with Hardware-Efficient
Training", 2023, arXiv:2312.06635, section 4.
Limits: equal channels make it simple_gla.
Differs: the gate, log_sigmoid(x) / 16 in the paper, comes as its logarithm; the norm of each head
and the output gate belong to a layer. flash-linear-attention scales q by 1/sqrt(H), left out here.
"""

from typing import Any

import jax.numpy as jnp

from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.op import Limit, Op, fill, log_gates
from attnjax.ops.linear_recurrent.simple_gla import simple_gla
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


def gla(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_decay: Float[Array, "B T N H"],
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal linear attention in which each key channel fades by exp(log_decay) of its own."""
    return linear_attend(
        q,
        k,
        v,
        log_decay=log_decay,
        documents=documents,
        state=state,
        return_state=return_state,
        impl=impl,
    )


def _one_decay(q: Q, k: TokenK, v: TokenV) -> Out:
    return simple_gla(q, k, v, jnp.full(q.shape[:-1], -0.3))


OPS = (
    Op(
        gla,
        draw={"log_decay": log_gates},
        limits=(
            Limit(
                "equal channels make it simple_gla",
                {"log_decay": fill(-0.3)},
                _one_decay,
            ),
        ),
    ),
)
