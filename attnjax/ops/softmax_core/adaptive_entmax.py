"""Adaptively sparse attention: each head learns how sparse its weights are.

    A_ij = relu((alpha_n - 1) s_ij - tau_i)^(1 / (alpha_n - 1)),  tau_i such that a row sums to one
    alpha_n = clip(1 + sigmoid(a_n), 1.01, 2),  s_ij = q_i . k_j / sqrt(H)

a_n is a number of each head and layer, normal at first.  Weights are exactly zero where a score is
far enough below the largest of its row.

Paper: Zhao et al., "Adaptive Sparse and Monotonic Attention for Transformer-based Automatic Speech
Recognition", 2022, arXiv:2209.15176, whose sparse part is Correia, Niculae and Martins, "Adaptively
Sparse Transformers", 2019, arXiv:1909.00015.  The monotonic part is `monotonic_attention`.
Limits: a large a is sparsemax; a very negative one is nearly softmax, alpha = 1.01.
Differs: neither text was at hand; alpha is that of public code after deep-spin/entmax, which finds
tau by bisection, here by Newton's method.
"""

import jax
import jax.numpy as jnp

from attnjax.core import masks, normalizers
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.typing import K, Out, PerHead, Q, V


@on_any_mesh
def entmax_attention(
    q: Q,
    k: K,
    v: V,
    logit: PerHead,
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Attention by alpha-entmax with an alpha of each head; `logit` is a, and has a gradient."""
    normalizer = normalizers.entmax(alpha_of(logit))
    return attend(q, k, v, mask=mask, normalizer=normalizer, impl=impl)


def alpha_of(logit: PerHead) -> PerHead:
    """alpha = clip(1 + sigmoid(a), 1.01, 2), wide; no gradient where it is clipped."""
    return jnp.clip(1.0 + jax.nn.sigmoid(wide(logit)), 1.01, 2.0)


def _sparsemax(q: Q, k: K, v: V) -> Out:
    return attend(q, k, v, normalizer=normalizers.sparsemax)


OPS = (
    Op(
        entmax_attention,
        papers=(225,),
        limits=(Limit("a large a is sparsemax", {"logit": fill(100.0)}, _sparsemax),),
    ),
)
