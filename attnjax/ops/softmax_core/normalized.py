"""Normalized attention: a row of scores with mean 0 and deviation 1 in the place of softmax.

    s_ij = q_i . k_j,    m_i and d_i the mean and the deviation of s_ij over the allowed keys
    A_ij = gain (s_ij - m_i) / (d_i + 1e-3) + bias,    out_i = sum_j A_ij v_j

What the paper compares it with besides softmax: gain = 0, bias = 1 is sum pooling, and max pooling
is jnp.broadcast_to(v.max(1, keepdims=True), v.shape), each the same for every query.

Paper: Richter and Wattenhofer, "Normalized Attention Without Probability Cage", 2020,
arXiv:2005.09561.
Limits: gain = 0 is bias times the sum of the values; a constant added to the scores of a query
changes nothing.
Differs: scores are not divided by sqrt(H), nor the sum by the number of keys, as in the released
code, which then has LayerNorm, GELU and a projection of all heads together: a layer's.
"""

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.normalizers import Normalizer, Params, Rows, Stage
from attnjax.core.numerics import divide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op, fill, normal
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, K, Out, PerHead, Q, V

_EPS = 1e-3


def _count_and_sum(s: Array, m: Array, stats: Rows, params: Params) -> Rows:
    return jnp.ones_like(s), s


def _about(m: Array, sums: Rows, stats: Rows, params: Params) -> Rows:
    count, total = sums
    return (divide(total, count),)


def _centered(s: Array, m: Array, stats: Rows, params: Params) -> Rows:
    x = s - stats[0]
    return jnp.ones_like(s), x, x * x


def _moments(m: Array, sums: Rows, stats: Rows, params: Params) -> Rows:
    """The mean, and the deviation, whose derivative is zero where it is."""
    count, total, squares = sums
    off = divide(total, count)
    variance = divide(squares, count) - off * off
    some = variance > 0
    return stats[0] + off, jnp.where(some, jnp.sqrt(jnp.where(some, variance, 1.0)), 0.0)


def _standardized(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    gain, bias = params
    mean, deviation = stats
    return gain * (s - mean) / (deviation + _EPS) + bias


def standardized(gain: PerHead, bias: PerHead) -> Normalizer:
    """gain (s - mean) / (deviation + 1e-3) + bias over the allowed keys, not normalized again.

    Squares are summed about the mean, which a pass before brings: scores may be far from zero.
    """
    # What the first pass gives has no gradient, and needs none: moments do not depend on it.
    stages = (Stage(_count_and_sum, _about), Stage(_centered, _moments))
    return Normalizer("standardized", _standardized, stages=stages, params=(gain, bias))


def normalized_attention(
    q: Q,
    k: K,
    v: V,
    gain: PerHead,
    bias: PerHead,
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Weights of any sign, whose sum is bias times the number of keys; 1 and 0 to begin with."""
    return attend(q, k, v, mask=mask, normalizer=standardized(gain, bias), scale=1.0, impl=impl)


def _sum(q: Q, k: K, v: V, bias: PerHead) -> Out:
    count = v.shape[1]
    return count * bias[:, None] * multi_head_attention(jnp.zeros_like(q), k, v)


OPS = (
    Op(
        normalized_attention,
        papers=(295,),
        draw={"gain": normal(0.5, 1.0), "bias": normal(0.5)},
        limits=(Limit("gain = 0: bias times the sum of the values", {"gain": fill(0.0)}, _sum),),
    ),
)
