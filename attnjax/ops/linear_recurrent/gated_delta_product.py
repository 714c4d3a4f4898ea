"""Gated DeltaProduct: the state fades, then a token corrects it for several keys, one by one.

    S_t,0 = a_t S_{t-1,M}
    S_t,m = (I - beta_t,m k_t,m k_t,m^T) S_t,m-1 + beta_t,m k_t,m v_t,m^T,    o_t = q_t . S_t,M

so that a transition is a product of M Householder matrices, with q and k of length 1 and
a_t = exp(log_decay_t).

Paper: Siems et al., "DeltaProduct: Improving State-Tracking in Linear RNNs via Householder
Products", 2025, arXiv:2502.10297.
Limits: where only the last key has a beta above 0 it is gated_delta_net.
Differs: the activation of q and k, the short convolutions, the output norm and gate belong to a
layer. flash-linear-attention scales q by 1/sqrt(H), left out here, and lays the M keys of a token
out behind each other, (B,TM,K,H), which a reshape of these is. DeltaProduct without a gate is
log_decay = 0.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from attnjax.core import features
from attnjax.core.numerics import wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot, log_gates, uniform
from attnjax.ops.linear_recurrent.gated_delta_net import gated_delta_net
from attnjax.typing import Array, Float, Out, PerQuery, Q

Keys = Float[Array, "B T M K H"]
Values = Float[Array, "B T M K D"]
Strengths = Float[Array, "B T M N"]


@on_any_mesh
def gated_delta_product(
    q: Q,
    k: Keys,
    v: Values,
    beta: Strengths,
    log_decay: PerQuery,
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """The delta rule M times a token, on a state that fades by exp(log_decay) before the first.

    k (B,T,M,K,H), v (B,T,M,K,D), and beta (B,T,M,N) in [0, 2]: above 1 it overshoots, which makes
    reflections, and products of them rotations.
    """
    B, T, M = beta.shape[:3]
    in_line = lambda x: x.reshape(B, T * M, *x.shape[3:])
    first = (jnp.arange(M) == 0)[:, None]
    return linear_attend(
        features.cosine(wide(q)),
        features.cosine(wide(in_line(k))),
        in_line(v),
        log_decay=in_line(jnp.where(first, log_decay[:, :, None], 0.0)),
        beta=in_line(beta),
        writes=M,
        documents=documents,
        state=state,
        return_state=return_state,
        impl=impl,
    )


def _only_the_last(slot: Slot) -> np.ndarray:
    drawn = slot.rng.uniform(0.1, 0.9, slot.shape)
    drawn[:, :, :-1] = 0.0
    return drawn


def _of_the_last(q: Q, k: Keys, v: Values, beta: Strengths, log_decay: PerQuery) -> Out:
    return gated_delta_net(q, k[:, :, -1], v[:, :, -1], beta[:, :, -1], log_decay)


OPS = (
    Op(
        gated_delta_product,
        draw={"beta": uniform(0.1, 1.9), "log_decay": log_gates},
        sizes={"M": 3},
        limits=(
            Limit(
                "where only the last key has a beta above 0 it is gated_delta_net",
                {"beta": Draw(_only_the_last)},
                _of_the_last,
            ),
        ),
    ),
)
