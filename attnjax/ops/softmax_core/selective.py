"""Attention in which earlier tokens mask keys for later ones, without new parameters.

    S_ij = relu(q_i . k_j / sqrt(H)) of head 0, causal; zero at j = 0 and j = i
    F_ij = sum_{l < i} S_lj,    A_ij = softmax_j(q_i . k_j / sqrt(H) - F_ij) in every head

Paper: Leviathan, Kalman and Matias, "Selective Attention Improves Transformer", 2024,
arXiv:2410.02703, section 3.
Limits: head 0 with no positive score is causal softmax attention.
Differs: nothing; `selective_kept` drops keys of large F from a cache, `selective_memory_loss` asks
for it.
"""

import jax.numpy as jnp

from attnjax.core import masks, mods, normalizers
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend, attention_weights
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, K, Out, Q, V


def selection(q: Q, k: K, *, mask: masks.Mask = masks.causal) -> Float[Array, "B T S"]:
    """F: how strongly the tokens before query i have asked to forget key j; never negative."""
    others = mask & ~masks.sinks(1) & ~masks.window(0, 0)
    scores = attention_weights(wide(q), wide(k), mask=others, normalizer=normalizers.relu())
    asked = scores[:, 0]  # (B,T,S), of head 0
    strictly_before = jnp.pad(asked, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return jnp.cumsum(strictly_before, axis=1)


@of_whole_text
@on_any_mesh
def selective_attention(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.causal, impl: Impl = None
) -> Out:
    """Softmax attention minus the selection F, which all heads share.

    F is a bias of one number for each pair: O(T S) memory under every `impl`.
    """
    selected = mods.pair_bias(-selection(q, k, mask=mask)[:, None])
    return attend(q, k, v, mods=(selected,), mask=mask, impl=impl)


OPS = (
    Op(
        selective_attention,
        papers=(191,),
        limits=(
            Limit(
                "q = 0 asks for nothing: the mean of the values so far",
                {"q": fill(0.0)},
                causal_attention,
            ),
        ),
    ),
)
