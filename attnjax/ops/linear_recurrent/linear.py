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
from attnjax.op import Limit, Op, fill
from attnjax.typing import Q, TokenK, TokenV


def linear_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
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


OPS = (
    Op(
        linear_attention,
        limits=(
            Limit(
                "q = k = 0 gives the mean of the values so far",
                {"q": fill(0.0), "k": fill(0.0)},
                lambda q, k, v: attend(0 * q, k, v, mask=masks.causal),
            ),
        ),
    ),
)
