"""FAVOR+: softmax attention estimated without bias by positive random features, in linear time.

    o_i = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j)
    phi(x) = exp(W y - |y|^2 / 2) / sqrt(R),    y = x / H^(1/4),    W (R,H) Gaussian

with j <= i (causal) or over all j (full).  E[phi(q) . phi(k)] = exp(q.k / sqrt(H)) over W;
`features.orthogonal_rows` draws a W of orthogonal rows, which lowers the variance.

Paper: Choromanski et al., "Rethinking Attention with Performers", 2020, arXiv:2009.14794.
Limits: k = 0 gives the mean of the values (so far); for R -> infinity, softmax attention.
Differs: the paper adds a small constant to the features after the exponential; here it is the
maxima that keep the sums of weights away from zero.  W is an argument: the caller draws it anew.
"""

from typing import Any

import jax

from attnjax.core import features
from attnjax.core.numerics import wide
from attnjax.core.recurrence.documents import Documents
from attnjax.core.recurrence.linear import Impl
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot, fill
from attnjax.ops.linear_recurrent.exponential import (
    ExponentialState,
    exponential_attention,
    exponential_attention_full,
)
from attnjax.ops.linear_recurrent.linear import mean_of_all, mean_so_far
from attnjax.typing import Array, Float, K, Out, Q, TokenK, TokenV, V


@on_any_mesh
def favor_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    projection: Float[Array, "R H"],
    *,
    documents: Documents | None = None,
    state: ExponentialState | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal FAVOR+; a split run must keep its projection."""
    log_q, log_k = _log_features(q, projection), _log_features(k, projection)
    return exponential_attention(
        log_q, log_k, v, documents=documents, state=state, return_state=return_state, impl=impl
    )


@of_whole_text
@on_any_mesh
def favor_attention_full(
    q: Q, k: K, v: V, projection: Float[Array, "R H"], *, impl: Impl = None
) -> Out:
    """FAVOR+ over all tokens, in both directions."""
    log_q, log_k = _log_features(q, projection), _log_features(k, projection)
    return exponential_attention_full(log_q, log_k, v, impl=impl)


def _log_features(
    x: Float[Array, "B T N H"], projection: Float[Array, "R H"]
) -> Float[Array, "B T N R"]:
    """log phi(x)."""
    y = wide(x) * x.shape[-1] ** -0.25
    return features.log_favor(wide(projection))(y)


def _orthogonal(slot: Slot) -> Array:
    key = jax.random.key(slot.rng.integers(2**31))
    return features.orthogonal_rows(key, *slot.shape)


_INPUTS = {"projection": Draw(_orthogonal)}
_ZERO = {"k": fill(0.0)}

OPS = (
    Op(
        favor_attention,
        papers=(210,),
        draw=_INPUTS,
        limits=(
            Limit(
                "k = 0 gives the mean of the values so far",
                _ZERO,
                mean_so_far,
            ),
        ),
    ),
    Op(
        favor_attention_full,
        papers=(210,),
        reads="all",
        draw=_INPUTS,
        limits=(Limit("k = 0 gives the mean of the values", _ZERO, mean_of_all),),
    ),
)
