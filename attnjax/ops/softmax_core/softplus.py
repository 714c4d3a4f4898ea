"""Softplus for exp, a scale that grows with the number of keys, and a re-weighting that sharpens.

    a_ij = softplus(log(H) log(n_i) / sqrt(H) q_i . k_j),    A = a / sum_j a            (LSSA)
    A'_ij = relu(n_i A_ij - offset)^power, divided by its sum over j                   (LSSAR)
    n_i: the number of keys that query i sees; i + 1 under the causal mask

Paper: Gao, Spratling and Gionfrida, "Softplus Attention with Re-weighting Boosts Length
Extrapolation in Large Language Models", 2025, arXiv:2501.13428.
Limits: power = 1 and offset = 0 is LSSA; q = 0 gives the mean of the visible values.
Differs: power and offset are the caller's; the constant log(H) of the scale is from memory.
"""

import math

import jax.numpy as jnp

from attnjax.core import masks, mods, normalizers
from attnjax.core.numerics import working_dtype
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op, fill
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, K, Out, Q, V


def softplus_attention(
    q: Q,
    k: K,
    v: V,
    *,
    power: int = 1,
    offset: float = 0.0,
    mask: masks.Mask = masks.causal,
    impl: Impl = None,
) -> Out:
    """LSSA; `power` > 1 and `offset` up to 1, the uniform level, sharpen it without new training.

    Weights below offset / n_i are exactly zero; a query none of whose weights is above gets zero.
    The causal mask costs nothing to count, any other one is formed once, T x S booleans.
    """
    H = q.shape[-1]
    longer = mods.mod(jnp.multiply, query=jnp.log(_visible(mask, q, k)))
    return attend(
        q,
        k,
        v,
        mods=(longer,),
        mask=mask,
        normalizer=normalizers.softplus(power, offset),
        scale=math.log(H) / math.sqrt(H),
        impl=impl,
    )


def _visible(mask: masks.Mask, q: Q, k: K) -> Array:
    """The number of keys each query sees, (T,) or (B,T,N), at least one."""
    B, T, N, _ = q.shape
    S = k.shape[1]
    if mask == masks.causal:
        count = jnp.minimum(jnp.arange(1, T + 1), S)
    else:
        count = jnp.maximum(jnp.asarray(mask.dense(T, S)).sum(-1), 1)
    if count.ndim == 3:  # a mask that differs between sequences or heads
        count = jnp.broadcast_to(jnp.moveaxis(count, 1, 2), (B, T, N))
    return count.astype(working_dtype(q.dtype))


OPS = (
    Op(
        softplus_attention,
        papers=(121,),
        draw={"power": 3, "offset": 0.5},
        limits=(
            Limit(
                "q = 0 gives the mean of the visible values",
                {"q": fill(0.0)},
                causal_attention,
            ),
        ),
    ),
)
