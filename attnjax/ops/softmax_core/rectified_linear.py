"""Rectified linear attention: relu for softmax, then a root-mean-square norm over all heads.

    x_i = [sum_j relu(q_i . k_j / sqrt(H)) v_j of each head],    g = gain
    rela         out_i = g x_i / sqrt(mean(x_i^2) + eps)
    rela_gated   out_i = sigmoid(w x_i) g x_i / sqrt(mean(x_i^2) + eps)

Paper: Zhang, Titov and Sennrich, "Sparse Attention with Linear Units", 2021, arXiv:2104.07012.
Limits: q times c > 0 changes nothing but through eps = 1e-8; w = 0 halves the output.
Differs: ReLA-i is `rela` with a small initial gain; the layer owns that choice.
"""

import jax
import jax.numpy as jnp

from attnjax.core import masks, normalizers
from attnjax.core.numerics import rms_norm, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, K, Out, Q, V


def rela(
    q: Q,
    k: K,
    v: V,
    gain: Float[Array, "N D"],
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Attends by relu(score) and norms the concatenated heads; `gain` is (N, D).

    A query whose scores are all negative gets zero.
    """
    x = wide(attend(q, k, v, mask=mask, normalizer=normalizers.relu(), impl=impl))
    return (_norm(x) * wide(gain)[None, None]).astype(q.dtype)


def rela_gated(
    q: Q,
    k: K,
    v: V,
    gain: Float[Array, "N D"],
    gate: Float[Array, "N D"],
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """`rela` times sigmoid(gate x), x the output before the norm; `gate` is w, (N, D)."""
    x = wide(attend(q, k, v, mask=mask, normalizer=normalizers.relu(), impl=impl))
    opened = jax.nn.sigmoid(wide(gate)[None, None] * x)
    return (opened * _norm(x) * wide(gain)[None, None]).astype(q.dtype)


def _norm(x: Out) -> Out:
    """x over its root mean square, of all heads of a token together."""
    return rms_norm(x.reshape(*x.shape[:2], x.shape[2] * x.shape[3]), eps=1e-8).reshape(x.shape)


def _zeros(q: Q, v: V) -> Out:
    return jnp.zeros((*q.shape[:3], v.shape[-1]))


def _half(q: Q, k: K, v: V, gain: Array) -> Out:
    return rela(q, k, v, gain) / 2


OPS = (
    Op(
        rela,
        papers=(266,),
        limits=(
            Limit("q = 0: every score is zero, and so is the output", {"q": fill(0.0)}, _zeros),
        ),
    ),
    Op(
        rela_gated,
        papers=(266,),
        limits=(Limit("a gate of zero halves rela", {"gate": fill(0.0)}, _half),),
    ),
)
