"""Hedgehog: linear attention whose exponential features are learned to mimic softmax.

    o_i = sum_{j <= i} (phi(q_i) . phi(k_j)) v_j / sum_{j <= i} phi(q_i) . phi(k_j)
    phi(x) = [exp(x W), exp(-x W)]

Paper: Zhang, Bhatia, Kumbong and Re, "The Hedgehog & the Porcupine: Expressive Linear Attentions
with Softmax Mimicry", 2024, arXiv:2402.04347.
Limits: W = 0 gives the mean of the values so far.
"""

from typing import Any

from attnjax.core import features, masks
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import attend
from attnjax.core.recurrence.linear import Impl
from attnjax.op import Limit, Variant, full, normal
from attnjax.ops.linear_recurrent.exponential import ExponentialState, exponential_attention
from attnjax.typing import Array, Float, K, Q, V


def hedgehog_attention(
    q: Q,
    k: K,
    v: V,
    w_q: Float[Array, "N H R"],
    w_k: Float[Array, "K H R"],
    *,
    state: ExponentialState | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal; every head of queries and of keys has its own map, H to 2R features."""
    q, k = features.log_hedgehog(w_q)(wide(q)), features.log_hedgehog(w_k)(wide(k))
    return exponential_attention(q, k, v, state=state, return_state=return_state, impl=impl)


VARIANT = Variant(
    hedgehog_attention,
    rows=(),
    paper="Zhang, Bhatia, Kumbong and Re, 2024, arXiv:2402.04347",
    inputs={"w_q": normal("N H R", 0.5), "w_k": normal("K H R", 0.5)},
    sizes={"N": 6, "K": 3},
    engine="linear_attend",
    limits=(
        Limit(
            "W = 0 gives the mean of the values so far",
            given={"w_q": full("N H R", 0.0), "w_k": full("K H R", 0.0)},
            equals=lambda q, k, v, w_q, w_k: attend(0 * q, k, v, mask=masks.causal),
        ),
    ),
    exempt={
        "unequal": "each token both writes and reads: T = S",
        "grouped": "every key head has a learned map of its own",
    },
)
