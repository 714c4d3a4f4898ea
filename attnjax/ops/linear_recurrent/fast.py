"""FAST attention (Fastmax): standardized queries and keys, a polynomial in the place of exp.

    A_ij = f(x_ij) / sum_j f(x_ij),    f(x) = sum_{l <= p} x^l / l!,    x_ij = s(q_i) . s(k_j)
    s(u) = (u - mean(u)) / deviation(u) over the features of u

with j <= i (causal) or over all j (full); sums of powers cost O(T H^(p+1)).

Paper: Gerami, Hoover, Dulepet and Duraiswami, "FAST: Factorizable Attention for Speeding up
Transformers", 2024, arXiv:2402.07901.
Limits: a constant query gives the mean of the values (so far); p -> infinity is the softmax of x.
Weights are positive for even p; for p = 1 they may be negative, and their sum zero.
Differs: in the authors' repositories the standardization is an option, off by default, and divides
by the largest length over tokens, the last one included, in the place of a deviation.  Without it
FAST is linear_attention with phi = features.taylor(p), of q and k as they are.
"""

from typing import Any

from attnjax.core import features
from attnjax.core.numerics import divide, wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.linear import linear_attention, mean_of_all, mean_so_far
from attnjax.typing import K, Out, Q, TokenK, TokenV, V


@on_any_mesh
def fast_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    order: int = 2,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal; the state holds 1 + H + ... + H^order sums of values."""
    return linear_attention(
        features.standardize(wide(q)),
        features.standardize(wide(k)),
        v,
        phi=features.taylor(order),
        documents=documents,
        state=state,
        return_state=return_state,
        impl=impl,
    )


@on_any_mesh
def fast_attention_full(q: Q, k: K, v: V, *, order: int = 2, impl: Impl = None) -> Out:
    """Over all tokens, in both directions."""
    phi = features.taylor(order)
    q, k = features.standardize(wide(q)), features.standardize(wide(k))
    return linear_attend(phi(q), phi(k), v, normalize=divide, block=None, impl=impl)


_CONSTANT = {"q": fill(2.0)}

OPS = (
    Op(
        fast_attention,
        papers=(147,),
        limits=(
            Limit(
                "a constant query gives the mean of the values so far",
                _CONSTANT,
                mean_so_far,
            ),
        ),
    ),
    Op(
        fast_attention_full,
        papers=(147,),
        reads="all",
        limits=(
            Limit(
                "a constant query gives the mean of the values",
                _CONSTANT,
                mean_of_all,
            ),
        ),
    ),
)
