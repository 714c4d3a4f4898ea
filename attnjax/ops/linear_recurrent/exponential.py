"""Linear attention of exponential features, given as logarithms and never overflowing.

    o_i = sum_j (exp(q_i) . exp(k_j)) v_j / sum_j exp(q_i) . exp(k_j),  j <= i or all j (full)

Paper: Nahshan, Kampeas and Haleva, "Linear Log-Normal Attention with Unbiased Concentration", 2023,
arXiv:2311.13541, for alpha = beta = 1; every positive feature map is a special case, with the
logarithms of its features for q and k.
Limits: k = 0 gives the mean of the values (so far).
Differs: maxima are subtracted from the exponents, which cancels in the result.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from attnjax.core import features, masks, numerics
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.pairwise.attend import attend
from attnjax.core.recurrence.linear import Impl, State, linear_attend
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, K, Out, Q, TokenK, TokenV, V


class ExponentialState(NamedTuple):
    """exp(-reference) times the sums so far; reference (B,K) is the largest exponent of a key."""

    sums: State
    reference: Float[Array, "B K"]


def exponential_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    state: ExponentialState | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal; q and k hold the logarithms of features, q (B,T,N,R), k (B,S,K,R).

    A key e^-87 times smaller than the largest before it counts as zero (in float32).
    """
    q, k = wide(q), wide(k)
    before = None if state is None else state.reference
    m, decay = features.running_max(lax.stop_gradient(k.max(axis=-1)), before=before)
    out = linear_attend(
        jnp.exp(q - lax.stop_gradient(q.max(axis=-1, keepdims=True))),
        jnp.exp(k - m[..., None]),
        v,
        log_decay=repeat_heads(decay, q),
        normalize=numerics.divide_stably,
        state=None if state is None else state.sums,
        return_state=return_state,
        impl=impl,
    )
    return (out[0], ExponentialState(out[1], m[:, -1])) if return_state else out


def exponential_attention_full(q: Q, k: K, v: V, *, impl: Impl = None) -> Out:
    """Over all tokens: each feature has its own reference, so that no sum of weights underflows."""
    q, k = wide(q), wide(k)
    m = lax.stop_gradient(k.max(axis=1, keepdims=True))
    q = q + repeat_heads(m, q)
    q = jnp.exp(q - lax.stop_gradient(q.max(axis=-1, keepdims=True)))
    return linear_attend(
        q, jnp.exp(k - m), v, normalize=numerics.divide_stably, block=None, impl=impl
    )


def _uniform(mask: masks.Mask) -> Limit:
    return Limit(
        "k = 0 gives the mean of the values it sees",
        {"k": fill(0.0)},
        lambda q, k, v: attend(q, k, v, mask=mask),
    )


OPS = (
    Op(exponential_attention, papers=(158,), limits=(_uniform(masks.causal),)),
    Op(
        exponential_attention_full, papers=(158,), reads="all", limits=(_uniform(masks.everything),)
    ),
)
