"""Attention with a rectified softmax that need not sum to one: no sink, exact zeros.

    A_ij = relu(exp(s_ij) - 1) / (sum_j |exp(s_ij) - 1| + eps),    s_ij = q_i . k_j / sqrt(H)

Paper: Zuhri, Fuadi and Aji, "Softpick: No Attention Sink, No Massive Activations with Rectified
Softmax", 2025, arXiv:2504.20966.
Limits: scores of zero or less give zero.
Differs: eps is that of the released readable form (the released kernel has 1e-6); both add it after
dividing by the exponential of the largest score, which changes a weight by at most eps.
"""

import jax.numpy as jnp

from attnjax.core import masks, normalizers
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op, fill
from attnjax.typing import K, Out, Q, V


def softpick_attention(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.causal, impl: Impl = None
) -> Out:
    """Weights in [0, 1) with sums at most one; a query may attend to nothing."""
    return attend(q, k, v, mask=mask, normalizer=normalizers.softpick(eps=1e-8), impl=impl)


def _zeros(q: Q, v: V) -> Out:
    return jnp.zeros((*q.shape[:3], v.shape[-1]))


OPS = (
    Op(
        softpick_attention,
        papers=(247,),
        limits=(
            Limit("q = 0: every score is zero, and so is the output", {"q": fill(0.0)}, _zeros),
        ),
    ),
)
