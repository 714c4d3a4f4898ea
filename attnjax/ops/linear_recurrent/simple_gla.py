"""Gated linear attention, its gate one number for each head: the state fades, then is added to.

    S_t = a_t S_{t-1} + k_t v_t^T,    o_t = q_t . S_t,    a_t = exp(log_decay_t)

Paper: Yang, Wang, Shen, Panda and Kim, "Gated Linear Attention Transformers with Hardware-Efficient
Training", 2023, arXiv:2312.06635, where it is the gate of the models that gla generalizes.
Limits: gates of 1 give linear attention without a normalizer.
"""

from typing import Any

from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.op import Limit, Op, fill, log_gates
from attnjax.ops.linear_recurrent.linear import plain_sums
from attnjax.typing import PerQuery, Q, TokenK, TokenV


def simple_gla(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_decay: PerQuery,
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal linear attention that fades by exp(log_decay) at each token."""
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


OPS = (
    Op(
        simple_gla,
        draw={"log_decay": log_gates},
        limits=(
            Limit(
                "gates of 1 give plain sums",
                {"log_decay": fill(0.0)},
                plain_sums,
            ),
        ),
    ),
)
