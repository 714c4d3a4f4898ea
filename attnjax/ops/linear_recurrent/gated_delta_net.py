"""The gated delta rule: the state fades, then a token corrects what is left for its key.

    S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,    o_t = q_t . S_t

with q and k of length 1, beta_t how much of the correction is made, and a_t = exp(log_decay_t).

Paper: Yang, Kautz and Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024,
arXiv:2412.06464.
Limits: gates of 1 make it delta_net.
Differs: the activation of q and k, the short convolutions, the output norm and gate belong to a
layer. flash-linear-attention scales q by 1/sqrt(H), left out here.
"""

from typing import Any

from attnjax.core import features
from attnjax.core.numerics import wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.op import Limit, Op, fill, log_gates, uniform
from attnjax.ops.linear_recurrent.delta_net import delta_net
from attnjax.typing import PerQuery, Q, TokenK, TokenV


def gated_delta_net(
    q: Q,
    k: TokenK,
    v: TokenV,
    beta: PerQuery,
    log_decay: PerQuery,
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """The delta rule on a state that fades by exp(log_decay) before each correction."""
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


OPS = (
    Op(
        gated_delta_net,
        papers=(353,),
        draw={"beta": uniform(0.1, 0.9), "log_decay": log_gates},
        limits=(
            Limit(
                "gates of 1 make it delta_net",
                {"log_decay": fill(0.0)},
                delta_net,
            ),
        ),
    ),
)
