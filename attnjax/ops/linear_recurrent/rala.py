"""Rank-augmented linear attention: tokens re-weighted by a global query, outputs gated by tokens.

    o_i = g_i * phi(q_i) sum_j a_j phi(k_j) v_j^T / (phi(q_i) . sum_j a_j phi(k_j))
    a_j = S softmax_j(mean(q) . k_j / sqrt(H)),    phi = elu + 1

Paper: Fan, Huang and He, "Breaking the Low-Rank Dilemma of Linear Attention", 2024,
arXiv:2411.07635.
Limits: queries of mean zero (a = 1) with gate 1 are linear attention with phi.
Differs: the gate's projection of the token belongs to a layer, as do the rotary positions and the
depthwise convolution of v of the paper's blocks; its code takes mean(q) and k after phi.
"""

import math

import jax
import numpy as np

from attnjax.core import features
from attnjax.core.numerics import divide, einsum, repeat_heads, wide
from attnjax.core.recurrence.linear import Impl, linear_attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, adjusted, fill
from attnjax.typing import Array, Float, K, Out, Q, V


@of_whole_text
@on_any_mesh
def rala(
    q: Q,
    k: K,
    v: V,
    gate: Float[Array, "B T N D"],
    *,
    phi: features.FeatureMap = features.elu1,
    impl: Impl = None,
) -> Out:
    """Over all tokens, in both directions; the weights a_j sum to S in every query head."""
    S, H = k.shape[1], q.shape[3]
    q, keys, values = wide(q), repeat_heads(wide(k), q), repeat_heads(wide(v), q)
    scores = einsum("BNH,BSNH->BSN", q.mean(axis=1), keys) / math.sqrt(H)
    a = S * jax.nn.softmax(scores, axis=1)
    keys = a[..., None] * phi(keys)
    out = linear_attend(phi(q), keys, values, normalize=divide, block=None, impl=impl)
    return (wide(gate) * out).astype(v.dtype)


def _centered(q: np.ndarray) -> np.ndarray:
    return q - q.mean(axis=1, keepdims=True)


def _linear(q: Q, k: K, v: V) -> Out:
    q, k = features.elu1(q), features.elu1(k)
    return linear_attend(q, k, v, normalize=divide, block=None)


OPS = (
    Op(
        rala,
        papers=(153,),
        reads="all",
        limits=(
            Limit(
                "queries of mean zero with gate 1 are linear attention",
                {"q": adjusted(_centered), "gate": fill(1.0)},
                _linear,
            ),
        ),
    ),
)
