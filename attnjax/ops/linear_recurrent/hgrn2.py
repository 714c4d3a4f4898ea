"""HGRN2: gated linear attention whose key is what the gate lets go, so a channel stays bounded.

    S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T,    o_t = q_t . S_t,    f_t = exp(log_forget_t)

Paper: Qin, Yang, Sun, Shen, Li, Sun and Zhong, "HGRN2: Gated Linear RNNs with State Expansion",
2024, arXiv:2404.07904.
Limits: gates of 1 take nothing in; gates of 0 keep the last value alone.
Differs: the lower bounds of the gates, which rise with the layers, belong to a layer.
flash-linear-attention scales q by 1/sqrt(H), left out here.
"""

from typing import Any

import jax.numpy as jnp

from attnjax.core.numerics import wide
from attnjax.core.recurrence.linear import Documents, Impl, State
from attnjax.op import Limit, Op, fill, log_gates
from attnjax.ops.linear_recurrent.gla import gla
from attnjax.typing import Array, Float, Out, Q


def hgrn2(
    q: Q,
    log_forget: Float[Array, "B T N H"],
    v: Out,
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Gated linear attention with keys 1 - exp(log_forget); v has as many heads as q."""
    k = -jnp.expm1(wide(log_forget))
    return gla(
        q, k, v, log_forget, documents=documents, state=state, return_state=return_state, impl=impl
    )


def _zeros(v: Out) -> Out:
    return jnp.zeros_like(v)


def _last_value(q: Q, v: Out) -> Out:
    return q.sum(axis=-1, keepdims=True) * v


OPS = (
    Op(
        hgrn2,
        draw={"log_forget": log_gates},
        limits=(
            Limit(
                "gates of 1 take nothing in",
                {"log_forget": fill(0.0)},
                _zeros,
            ),
            Limit(
                "gates of 0 keep the last value alone",
                {"log_forget": fill(-10000.0)},
                _last_value,
            ),
        ),
    ),
)
