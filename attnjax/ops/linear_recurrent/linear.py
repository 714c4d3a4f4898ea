"""Linear attention: a feature map in the place of softmax's exponential.

    o_i = phi(q_i) sum_{j <= i} phi(k_j) v_j^T / (phi(q_i) . sum_{j <= i} phi(k_j))

Paper: Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear
Attention", 2020, arXiv:2006.16236.
Limits: q = k = 0 gives the mean of the values so far (elu(0) + 1 is 1).
"""

from typing import Any

import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import divide, repeat_heads, wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.op import Limit, Op, fill
from attnjax.typing import Out, Q, TokenK, TokenV, V


def linear_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    phi: features.FeatureMap = features.elu1,
    documents: Documents | None = None,
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
        documents=documents,
        state=state,
        return_state=return_state,
        impl=impl,
    )


def mean_so_far(q: Q, v: TokenV) -> Out:
    """The mean of the values up to each token: what weights that are all alike give."""
    counts = jnp.arange(1, v.shape[1] + 1)[:, None, None]
    return jnp.cumsum(repeat_heads(v, q), axis=1) / counts


def mean_of_all(q: Q, v: V) -> Out:
    """The mean of all values, for every query."""
    mean = repeat_heads(v.mean(axis=1, keepdims=True), q)
    return jnp.broadcast_to(mean, (*q.shape[:3], v.shape[-1]))


def plain_sums(q: Q, k: TokenK, v: TokenV) -> Out:
    """Causal linear attention without feature map, decay and normalizer."""
    return linear_attend(q, k, v)


OPS = (
    Op(
        linear_attention,
        limits=(
            Limit(
                "q = k = 0 gives the mean of the values so far",
                {"q": fill(0.0), "k": fill(0.0)},
                mean_so_far,
            ),
        ),
    ),
)
