"""Mamba-2 (SSD): a state space model whose transition is a number, in the terms of its paper.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T,    y_t = C_t . h_t + D x_t

It is linear attention with q = C, k = B, v = dt x and log decay dt A.

Paper: Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through
Structured State Space Duality", 2024, arXiv:2405.21060.
Limits: A = 0 and dt = 1 is linear attention without a normalizer.
Differs: the softplus of dt, the convolution, the gate and the norm belong to a layer.
"""

from typing import Any

from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.recurrence.linear import (
    Documents,
    Impl,
    State,
    linear_attend,
    packed_documents,
)
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, normal, uniform
from attnjax.typing import Array, Float, PerHead, PerQuery


@on_any_mesh
def mamba2(
    x: Float[Array, "B T N D"],
    dt: PerQuery,
    A: PerHead,
    B: Float[Array, "B T K H"],
    C: Float[Array, "B T K H"],
    D: PerHead | None = None,
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Steps dt > 0, transitions A < 0, inputs B and outputs C, a skip connection D if given.

    N is a multiple of K, the groups: consecutive N / K heads share their B and C.
    """
    u, dt = wide(x), wide(dt)
    y, last = linear_attend(
        repeat_heads(C, x),
        repeat_heads(B, x),
        dt[..., None] * u,
        log_decay=dt * A[None, None],
        documents=documents,
        state=state,
        return_state=True,
        impl=impl,
    )
    if D is not None:
        y += wide(D)[None, None, :, None] * u
    of = packed_documents(documents, x, state, impl)
    y = (y if of is None else of.without_padding(y)).astype(x.dtype)
    return (y, last) if return_state else y


def _linear(
    x: Float[Array, "B T N D"], B: Float[Array, "B T K H"], C: Float[Array, "B T K H"]
) -> Float[Array, "B T N D"]:
    return linear_attend(repeat_heads(C, x), repeat_heads(B, x), x)


OPS = (
    Op(
        mamba2,
        draw={"dt": uniform(0.1, 1.0), "A": uniform(-2.0, -0.1), "D": normal()},
        limits=(
            Limit(
                "A = 0, dt = 1 and D = 0 is linear attention without a normalizer",
                {"dt": fill(1.0), "A": fill(0.0), "D": fill(0.0)},
                _linear,
            ),
        ),
    ),
)
