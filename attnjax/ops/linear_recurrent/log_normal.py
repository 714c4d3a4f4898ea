"""Linear log-normal attention (LLN): exponential features with the concentration of softmax.

    o_i = sum_j w_ij v_j / sum_j w_ij    over j <= i (causal) or all j (full)
    w_ij = exp(alpha q_i) . exp(beta k_j)
    alpha, beta = s / deviation(q), s / deviation(k),
    s^2 = (var(q) var(k) - b) / (2 a),    a = 0.14855178, b = -0.35487039

Paper: Nahshan, Kampeas and Haleva, "Linear Log-Normal Attention with Unbiased Concentration", 2023,
arXiv:2311.13541; constants of its released code.
Limits: alpha = beta = 0 gives the mean of the values (so far).
Differs: released moments are one number over batch and heads, as here; `axis=(1, 2, 3)` takes those
of each sequence, so that examples do not depend on each other.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax

from attnjax.core.numerics import divide, wide
from attnjax.core.recurrence.documents import Documents
from attnjax.core.recurrence.linear import Impl
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.exponential import (
    ExponentialState,
    exponential_attention,
    exponential_attention_full,
)
from attnjax.ops.linear_recurrent.linear import mean_of_all, mean_so_far
from attnjax.typing import Array, Float, K, Out, Q, TokenK, TokenV, V


@on_any_mesh
def log_normal_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    alpha: float | Float[Array, ""],
    beta: float | Float[Array, ""],
    *,
    documents: Documents | None = None,
    state: ExponentialState | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal LLN; alpha and beta are fixed beforehand: those of the whole would see the future."""
    q, k = alpha * wide(q), beta * wide(k)
    return exponential_attention(
        q, k, v, documents=documents, state=state, return_state=return_state, impl=impl
    )


@of_whole_text
@on_any_mesh
def log_normal_attention_full(
    q: Q,
    k: K,
    v: V,
    alpha: float | Float[Array, ""],
    beta: float | Float[Array, ""],
    *,
    impl: Impl = None,
) -> Out:
    """LLN over all tokens; alpha and beta from `match_moments`, or learned."""
    return exponential_attention_full(alpha * wide(q), beta * wide(k), v, impl=impl)


def match_moments(
    q: Q,
    k: K,
    a: float = 0.14855178,
    b: float = -0.35487039,
    *,
    axis: tuple[int, ...] = (0, 1, 2, 3),
) -> tuple[Array, Array]:
    """(alpha, beta), each with ones for `axis`, without gradient: log-weights vary as softmax's do.

    a (alpha^2 var(q) + beta^2 var(k)) + b is the paper's fit of the variance of log w_ij.
    """
    q_deviation, k_deviation = _deviation(q, axis), _deviation(k, axis)
    s = jnp.sqrt((jnp.square(q_deviation * k_deviation) - b) / (2 * a))
    return divide(s, q_deviation), divide(s, k_deviation)


def _deviation(x: Array, axis: tuple[int, ...]) -> Array:
    """The standard deviation over `axis`, with n - 1, without gradient."""
    return jnp.std(lax.stop_gradient(wide(x)), axis=axis, keepdims=True, ddof=1)


_INPUTS = {"alpha": fill(1.3), "beta": fill(0.8)}
_ZERO = {"alpha": fill(0.0), "beta": fill(0.0)}

OPS = (
    Op(
        log_normal_attention,
        papers=(158,),
        draw=_INPUTS,
        limits=(Limit("alpha = beta = 0 gives the mean of the values so far", _ZERO, mean_so_far),),
    ),
    Op(
        log_normal_attention_full,
        papers=(158,),
        reads="all",
        draw=_INPUTS,
        limits=(Limit("alpha = beta = 0 gives the mean of the values", _ZERO, mean_of_all),),
    ),
)
