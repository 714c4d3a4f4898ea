"""Linear attention: a feature map in the place of softmax's exponential.

    o_i = phi(q_i) sum_{j <= i} phi(k_j) v_j^T / (phi(q_i) . sum_{j <= i} phi(k_j))

Paper: Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear
Attention", 2020, arXiv:2006.16236.
Limits: q = k = 0 gives the mean of the values so far (elu(0) + 1 is 1).
"""

from typing import Any

from attnjax.core import features, masks
from attnjax.core.numerics import divide, wide
from attnjax.core.pairwise.attend import attend
from attnjax.core.recurrence.linear import Impl, State, linear_attend
from attnjax.op import Limit, Variant, full
from attnjax.typing import K, Q, V


def linear_attention(
    q: Q,
    k: K,
    v: V,
    *,
    phi: features.FeatureMap = features.elu1,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal linear attention, normalized by the sum of its weights; `phi` should be positive."""
    return linear_attend(
        phi(wide(q)),
        phi(wide(k)),
        v,
        normalize=divide,
        state=state,
        return_state=return_state,
        impl=impl,
    )


VARIANT = Variant(
    linear_attention,
    rows=(),
    paper="Katharopoulos et al., 2020, arXiv:2006.16236",
    engine="linear_attend",
    limits=(
        Limit(
            "q = k = 0 gives the mean of the values so far",
            given={"q": full("B T N H", 0.0), "k": full("B S K H", 0.0)},
            equals=lambda q, k, v: attend(0 * q, k, v, mask=masks.causal),
        ),
    ),
    exempt={"unequal": "each token both writes and reads: T = S"},
)
