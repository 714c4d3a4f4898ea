"""Cog attention: weights with the sign of the score, so a head can subtract.

    A_ij = sign(s_ij) exp(|s_ij|) / sum_j exp(|s_ij|),    s_ij = q_i . k_j / sqrt(H)

Paper: Lv et al., "More Expressive Attention with Negative Weights", 2024, arXiv:2411.07176.
Limits: scores that are all positive give softmax; q -> -q gives -out.
"""

from attnjax.core import masks, normalizers
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op
from attnjax.typing import K, Out, Q, V


def cog_attention(q: Q, k: K, v: V, *, mask: masks.Mask = masks.causal, impl: Impl = None) -> Out:
    """Weights in [-1, 1] whose absolute values sum to one."""
    return attend(q, k, v, mask=mask, normalizer=normalizers.signed, impl=impl)


OPS = (
    Op(
        cog_attention,
        papers=(143,),
        limits=(
            Limit("negating q negates the output", {}, lambda q, k, v: -cog_attention(-q, k, v)),
        ),
    ),
)
