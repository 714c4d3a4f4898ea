"""Slim attention: a cache of keys alone, from which values are computed.

    V = X W_v = K C,    C = W_k^-1 W_v    for a square W_k: as many heads as the model is wide
    slim_attention            softmax(scores) (K C)
    slim_decoding_attention   (softmax(scores) K) C, cheaper for a few queries

K are the keys before their rotary positions, which are turned when they are read.  C may be folded
into the output projection of each head.

Paper: Graef et al., "Slim attention: cut your context memory in half without loss of accuracy --
K-cache is all you need for MHA", 2025, arXiv:2503.05840; OpenMachine-ai/transformer-tricks.
Limits: both orders agree; with C of `value_map` they are attention with values of W_v.
Differs: for keys of encoders, whose outputs would be cached, nothing is needed here.
"""

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import einsum, finite, project, wide
from attnjax.core.pairwise.attend import Impl, attend, attention_weights
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, normal
from attnjax.typing import Array, Float, Out, Q

Keys = Float[Array, "B S N H"]
Map = Float[Array, "W N D"]  # W = N H


@on_any_mesh
def slim_attention(
    q: Q, k: Keys, raw: Keys, values: Map, *, mask: masks.Mask = masks.causal, impl: Impl = None
) -> Out:
    """Attention of q over k, both turned, with values computed from the raw keys."""
    (B, S, N, H), (_, _, D) = raw.shape, values.shape
    v = project(raw.reshape(B, S, N * H), values.reshape(N * H, N * D)).reshape(B, S, N, D)
    return attend(q, k, v.astype(raw.dtype), mask=mask, impl=impl)


@on_any_mesh
def slim_decoding_attention(
    q: Q, k: Keys, raw: Keys, values: Map, *, mask: masks.Mask = masks.causal
) -> Out:
    """The same, raw keys weighted first: N H numbers a head and query, and no values; dense."""
    B, S, N, H = raw.shape
    w = attention_weights(wide(q), wide(k), mask=mask)
    rows = einsum("BNTS,BSW->BTNW", w, finite(raw).reshape(B, S, N * H))
    return einsum("BTNW,WND->BTND", rows, values).astype(q.dtype)


def value_map(w_k: Float[Array, "W N H"], w_v: Map) -> Map:
    """W_k^-1 W_v, offline and as exact as W_k is well conditioned; ValueError where N H is not W.

    So for keys that query heads share: they are narrower than the model, and have no inverse.
    """
    W, N, H = w_k.shape
    if N * H != W:
        raise ValueError(
            f"value_map: w_k has N H = {N * H}, expected W = {W}: one key a query head"
        )
    flat = wide(w_k).reshape(W, W), wide(w_v).reshape(W, w_v.shape[1] * w_v.shape[2])
    return jnp.linalg.solve(*flat).reshape(w_v.shape).astype(w_v.dtype)


_SIZES = {"W": 32}
_DRAW = {"values": normal(0.3)}
OPS = (
    Op(slim_attention, papers=(271,), draw=_DRAW, sizes=_SIZES),
    Op(
        slim_decoding_attention,
        papers=(271,),
        draw=_DRAW,
        sizes=_SIZES,
        limits=(Limit("both orders agree", {}, slim_attention),),
    ),
)
