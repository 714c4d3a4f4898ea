"""Gated DeltaNet-2: KDA with a gate of what is erased and one of what is written, not one beta.

    S_t = (I - k_t (b_t k_t)^T) diag(a_t) S_{t-1} + k_t (w_t v_t)^T,    o_t = q_t . S_t

with q and k of length 1, b_t of each key channel, w_t of each value channel, and a_t =
exp(log_decay_t).

Paper: Hatamizadeh, Choi and Kautz, "Gated DeltaNet-2: Decoupling Erase and Write in Linear
Attention", 2026, arXiv:2605.22791.
Limits: b = w = beta makes it kda; b = 0 erases nothing: gla of unit keys.
Differs: the activation of q and k, the short convolutions, the projections of the gates, the output
norm and gate belong to a layer. flash-linear-attention scales q by 1/sqrt(H), left out here.
"""

from typing import Any

import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, log_gates, uniform
from attnjax.ops.linear_recurrent.gla import gla
from attnjax.ops.linear_recurrent.kda import kda
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


@on_any_mesh
def gated_delta_net2(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_decay: Float[Array, "B T N H"],
    erase: Float[Array, "B T N H"],
    write: Float[Array, "B T N D"],
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Channels of the state fade; what b k then reads of it is replaced, along k, by w v."""
    k = repeat_heads(features.cosine(wide(k)), q)
    reading = jnp.exp(wide(log_decay)) * wide(erase) * k  # the engine reads before the state fades
    return linear_attend(
        features.cosine(wide(q)),
        k,
        (wide(write) * repeat_heads(wide(v), q)).astype(v.dtype),
        log_decay=log_decay,
        erase=(reading, None),
        documents=documents,
        state=state,
        return_state=return_state,
        impl=impl,
    )


def _one_strength(q: Q, k: TokenK, v: TokenV, log_decay: Float[Array, "B T N H"]) -> Out:
    return kda(q, k, v, jnp.full(q.shape[:-1], 0.7), log_decay)


def _writes_alone(
    q: Q, k: TokenK, v: TokenV, log_decay: Float[Array, "B T N H"], write: Float[Array, "B T N D"]
) -> Out:
    unit = lambda x: repeat_heads(features.cosine(x), q)
    return gla(unit(q), unit(k), write * repeat_heads(v, q), log_decay)


OPS = (
    Op(
        gated_delta_net2,
        draw={"log_decay": log_gates, "erase": uniform(0.1, 0.9), "write": uniform(0.1, 0.9)},
        limits=(
            Limit(
                "b = w = beta makes it kda",
                {"erase": fill(0.7), "write": fill(0.7)},
                _one_strength,
            ),
            Limit(
                "b = 0 erases nothing: gla of unit keys",
                {"erase": fill(0.0)},
                _writes_alone,
            ),
        ),
    ),
)
