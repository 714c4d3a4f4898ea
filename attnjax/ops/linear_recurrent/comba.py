"""Comba: the delta rule as a controller, whose feedback reads the state by a vector of its own.

    S_t = a_t S_{t-1} + beta_t k_t (v_t - p_t . S_{t-1})^T,    o_t = q_t . S_t,
    a_t = exp(log_decay_t)

In the paper p = b k, with b in (0, 1) for each head, and what reads is corrected by what was
written, q - d p, with d for each head.

Paper: Hu et al., "Comba: Improving Bilinear RNNs with Closed-loop Control", 2025, arXiv:2506.02475.
Limits: p = 0 reads nothing back: simple_gla of beta v.
Differs: p and q, corrected, come from the layer, and q, k, p with the lengths they shall have: its
released kernels bring each to length 1, which undoes b. They read the state before it fades, as
here, and so do the forms in chunks; the recurrent reference of flash-linear-attention reads it
after, which p = a p is. It scales q by 1/sqrt(H), left out here.
"""

from typing import Any

from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, log_gates, normal, uniform
from attnjax.ops.linear_recurrent.simple_gla import simple_gla
from attnjax.typing import Out, PerQuery, Q, TokenK, TokenV


@on_any_mesh
def comba(
    q: Q,
    k: TokenK,
    p: TokenK,
    v: TokenV,
    beta: PerQuery,
    log_decay: PerQuery,
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """What p reads of the state before it fades is taken from v; beta of the rest is written."""
    strength = wide(beta)[..., None]
    return linear_attend(
        q,
        repeat_heads(k, q),
        (strength * repeat_heads(wide(v), q)).astype(v.dtype),
        log_decay=log_decay,
        erase=(strength * repeat_heads(wide(p), q), None),
        documents=documents,
        state=state,
        return_state=return_state,
        impl=impl,
    )


def _reads_nothing_back(q: Q, k: TokenK, v: TokenV, beta: PerQuery, log_decay: PerQuery) -> Out:
    return simple_gla(q, repeat_heads(k, q), beta[..., None] * repeat_heads(v, q), log_decay)


OPS = (
    Op(
        comba,
        draw={
            "k": normal(0.4),
            "p": normal(0.4),
            "beta": uniform(0.1, 0.9),
            "log_decay": log_gates,
        },
        limits=(
            Limit(
                "p = 0 reads nothing back: simple_gla of beta v",
                {"p": fill(0.0)},
                _reads_nothing_back,
            ),
        ),
    ),
)
