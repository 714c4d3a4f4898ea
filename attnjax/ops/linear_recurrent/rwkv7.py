"""RWKV-7 (Goose): channels fade, and a token erases along a vector of its own before it writes.

    S_t = diag(w_t) S_{t-1} - (a_t c_t) (c_t . S_{t-1})^T + k_t v_t^T,    o_t = r_t . S_t

with w_t = exp(log_decay_t), c_t the removal key of length 1, and a_t, of each channel, the rate at
which what it reads is replaced in context.

Paper: Peng et al., "RWKV-7 'Goose' with Expressive Dynamic State Evolution", 2025,
arXiv:2503.14456, section 4.
Limits: a = 0 erases nothing: gla.
Differs: r is named q here, and kappa, before it has length 1, removal; w comes as its logarithm,
-exp(-1/2) sigmoid(x) in the paper. The token shifts, k = k' (1 + (a - 1) alpha), removal = k' xi,
the mixture of v with that of the first layer, the norm of each head, the bonus of a token's own
value, added after it, and the gate belong to a layer.
"""

from typing import Any

from attnjax.core import features
from attnjax.core.numerics import wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, uniform
from attnjax.ops.linear_recurrent.gla import gla
from attnjax.typing import Array, Float, Q, TokenK, TokenV


@on_any_mesh
def rwkv7(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_decay: Float[Array, "B T N H"],
    removal: Float[Array, "B T N H"],
    rate: Float[Array, "B T N H"],
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """A state that fades by channel, loses what it held along `removal`, and gains k v^T.

    removal is brought to length 1; rate, in (0, 1), is how much of each channel it replaces.
    """
    reading = features.cosine(wide(removal))
    return linear_attend(
        q,
        k,
        v,
        log_decay=log_decay,
        erase=(reading, wide(rate) * reading),
        documents=documents,
        state=state,
        return_state=return_state,
        impl=impl,
    )


OPS = (
    Op(
        rwkv7,
        draw={"log_decay": uniform(-0.6, 0.0), "rate": uniform(0.05, 0.95)},
        limits=(
            Limit(
                "a = 0 erases nothing: gla",
                {"rate": fill(0.0)},
                gla,
            ),
        ),
    ),
)
