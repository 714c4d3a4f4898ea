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

from attnjax.core import features
from attnjax.core.numerics import divide_stably, repeat_heads, wide
from attnjax.core.recurrence.linear import (
    Documents,
    Impl,
    State,
    linear_attend,
    packed_documents,
)
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.linear import mean_of_all, mean_so_far
from attnjax.typing import Array, Float, K, Out, Q, TokenK, TokenV, V


class ExponentialState(NamedTuple):
    """exp(-reference) times the sums so far; reference (B,K) is the largest exponent of a key."""

    sums: State
    reference: Float[Array, "B K"]


@on_any_mesh
def exponential_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    documents: Documents | None = None,
    state: ExponentialState | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal; q and k hold the logarithms of features, q (B,T,N,R), k (B,S,K,R).

    A key e^-87 times smaller than the largest before it counts as zero (in float32).
    """
    before, sums = (None, None) if state is None else (state.reference, state.sums)
    of = packed_documents(documents, q, sums, impl)
    k = wide(k)
    largest = lax.stop_gradient(k.max(axis=-1))
    reference, decay, last_reference = features.running_max(
        largest, before=before, documents=of, impl=impl
    )
    out, last = linear_attend(
        _exp_of_query(wide(q)),
        jnp.exp(k - reference[..., None]),
        v,
        log_decay=repeat_heads(decay, q),
        normalize=divide_stably,
        documents=documents,
        state=sums,
        return_state=True,
        impl=impl,
    )
    return (out, ExponentialState(last, last_reference)) if return_state else out


@of_whole_text
@on_any_mesh
def exponential_attention_full(q: Q, k: K, v: V, *, impl: Impl = None) -> Out:
    """Over all tokens: each feature has its own reference, so that no sum of weights underflows."""
    k = wide(k)
    reference = lax.stop_gradient(k.max(axis=1, keepdims=True))
    return linear_attend(
        _exp_of_query(wide(q) + repeat_heads(reference, q)),
        jnp.exp(k - reference),
        v,
        normalize=divide_stably,
        block=None,
        impl=impl,
    )


def _exp_of_query(q: Q) -> Q:
    """exp(q), divided by its largest feature, which no normalized output depends on."""
    return jnp.exp(q - lax.stop_gradient(q.max(axis=-1, keepdims=True)))


OPS = (
    Op(
        exponential_attention,
        papers=(158,),
        limits=(Limit("k = 0 gives the mean of the values so far", {"k": fill(0.0)}, mean_so_far),),
    ),
    Op(
        exponential_attention_full,
        papers=(158,),
        reads="all",
        limits=(Limit("k = 0 gives the mean of the values", {"k": fill(0.0)}, mean_of_all),),
    ),
)
