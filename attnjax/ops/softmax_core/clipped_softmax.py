"""Two ways to let a head do nothing without huge scores: a clipped softmax, or an output gate.

    clipped   A_ij = clip((zeta - gamma) softmax_j(s_ij) + gamma, 0, 1)
    gated     out_i = sigmoid(gate_i) sum_j softmax_j(s_ij) v_j,    s_ij = q_i . k_j / sqrt(H)

Paper: Bondarenko, Nagel and Blankevoort, "Quantizable Transformers: Removing Outliers by Helping
Attention Heads Do Nothing", 2023, arXiv:2306.12929, sections 4.1 and 4.2.
Limits: gamma = 0 and zeta = 1 is softmax; an open gate is softmax, a closed one gives zero.
Differs: the gate's small network belongs to a layer; `gate` is its output, before the sigmoid.
"""

import jax
import jax.numpy as jnp

from attnjax.core import masks, normalizers
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op, fill
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import K, Out, PerQuery, Q, V


def clipped_softmax_attention(
    q: Q,
    k: K,
    v: V,
    *,
    gamma: float = -0.03,
    zeta: float = 1.0,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Softmax stretched to [gamma, zeta] and cut to [0, 1]: weights can be exactly zero or one.

    gamma <= 0 (the paper also takes -alpha / T, alpha from 2 to 4) and zeta >= 1. Weights are not
    normalized again, and a clipped weight passes no gradient.
    """
    clipped = normalizers.clipped_softmax(gamma, zeta)
    return attend(q, k, v, mask=mask, normalizer=clipped, impl=impl)


def gated_attention(
    q: Q, k: K, v: V, gate: PerQuery, *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    """Softmax attention times the sigmoid of `gate`, one number for each token and head."""
    out = wide(attend(q, k, v, mask=mask, impl=impl))
    gate = wide(gate)[..., None]
    unknown = jnp.isnan(gate)
    gated = out * jax.nn.sigmoid(jnp.where(unknown, 0.0, gate))
    # a NaN gate spoils its row, but not in padding, where the row is zero
    return jnp.where(unknown & (out != 0), jnp.nan, gated).astype(q.dtype)


def _zeros(q: Q, v: V) -> Out:
    return jnp.zeros((*q.shape[:3], v.shape[-1]))


OPS = (
    Op(
        clipped_softmax_attention,
        papers=(141,),
        draw={"gamma": -0.1, "zeta": 1.05},
        limits=(
            Limit(
                "gamma = 0 and zeta = 1 is softmax attention",
                {"gamma": 0.0, "zeta": 1.0},
                multi_head_attention,
            ),
        ),
    ),
    Op(
        gated_attention,
        papers=(141,),
        limits=(
            Limit("an open gate is softmax attention", {"gate": fill(100.0)}, multi_head_attention),
            Limit("a closed gate gives zero", {"gate": fill(-100.0)}, _zeros),
        ),
    ),
)
