"""Hedgehog: linear attention whose exponential features are learned to mimic softmax.

    o_i = sum_{j <= i} (phi(q_i) . phi(k_j)) v_j / sum_{j <= i} phi(q_i) . phi(k_j)
    phi(x) = [softmax(x W), softmax(-x W)] over the R features of each half

Paper: Zhang, Bhatia, Kumbong and Re, "The Hedgehog & the Porcupine: Expressive Linear Attentions
with Softmax Mimicry", 2024, arXiv:2402.04347; code: HazyResearch/lolcats.
Limits: W = 0 gives the mean of the values so far.
Differs: the paper prints phi(x) = [exp(x W), exp(-x W)], `log_phi=features.log_hedgehog` here; the
released maps divide each half by its sum, which for keys is another weight of the token.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import wide
from attnjax.core.recurrence.documents import Documents
from attnjax.core.recurrence.linear import Impl
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, normal
from attnjax.ops.linear_recurrent.exponential import ExponentialState, exponential_attention
from attnjax.ops.linear_recurrent.linear import mean_so_far
from attnjax.typing import Array, Float, Q, TokenK, TokenV


def log_softmax_halves(w: Float[Array, "N H R"]) -> features.FeatureMap:
    """[log softmax(x W), log softmax(-x W)] for each head, x (B,T,N,H) -> (B,T,N,2R)."""
    log_phi = features.log_hedgehog(w)

    def halves(x: Array) -> Array:
        both = jnp.split(log_phi(x), 2, axis=-1)
        return jnp.concatenate([jax.nn.log_softmax(half, axis=-1) for half in both], axis=-1)

    return halves


@on_any_mesh
def hedgehog_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    w_q: Float[Array, "N H R"],
    w_k: Float[Array, "K H R"],
    *,
    log_phi: Callable[[Float[Array, "N H R"]], features.FeatureMap] = log_softmax_halves,
    documents: Documents | None = None,
    state: ExponentialState | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal; every head of queries and of keys has its own map, H to 2R features.

    `log_phi(w)` gives the logarithm of the features.
    """
    log_q, log_k = log_phi(w_q)(wide(q)), log_phi(w_k)(wide(k))
    return exponential_attention(
        log_q, log_k, v, documents=documents, state=state, return_state=return_state, impl=impl
    )


OPS = (
    Op(
        hedgehog_attention,
        draw={"w_q": normal(0.5), "w_k": normal(0.5)},
        sizes={"N": 6, "K": 3},
        limits=(
            Limit(
                "W = 0 gives the mean of the values so far",
                {"w_q": fill(0.0), "w_k": fill(0.0)},
                mean_so_far,
            ),
        ),
    ),
)
