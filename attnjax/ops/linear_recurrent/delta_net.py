"""The delta rule: a token corrects what the state holds for its key, instead of adding to it.

    S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,    o_t = q_t . S_t

with q and k of length 1, and beta_t how much of the correction is made.

Paper: Yang, Wang, Zhang, Shen and Kim, "Parallelizing Linear Transformers with the Delta Rule over
Sequence Length", 2024, arXiv:2406.06484.
Limits: beta = 0 writes nothing.
Differs: the activation of q and k, the short convolutions and the output norm belong to a layer.
flash-linear-attention scales q by 1/sqrt(H), left out here.
"""

from typing import Any

import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.op import Limit, Op, fill, uniform
from attnjax.typing import Out, PerQuery, Q, TokenK, TokenV


def delta_net(
    q: Q,
    k: TokenK,
    v: TokenV,
    beta: PerQuery,
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Linear attention that overwrites: beta in [0, 2], and 1 replaces all that a key held.

    A beta above 1 overshoots, which lets a state change its sign.
    """
    return linear_attend(
        features.cosine(wide(q)),
        features.cosine(wide(k)),
        v,
        beta=beta,
        documents=documents,
        state=state,
        return_state=return_state,
        impl=impl,
    )


def _zeros(q: Q, v: TokenV) -> Out:
    return jnp.zeros((*q.shape[:-1], v.shape[-1]))


OPS = (
    Op(
        delta_net,
        draw={"beta": uniform(0.1, 1.9)},
        limits=(
            Limit(
                "beta = 0 writes nothing",
                {"beta": fill(0.0)},
                _zeros,
            ),
        ),
    ),
)
