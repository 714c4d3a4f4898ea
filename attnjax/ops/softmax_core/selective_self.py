"""Attention in which each token sets the temperature of its query and the weight of its value.

    A_ij = softmax_j(tau_i q_i . k_j / sqrt(H)),    out_i = sum_j A_ij gate_j v_j
    position_temperature   tau_n = 1 + c log n of the n-th token, n from 1, 0 <= c < 1

Paper: Zhang et al., "Selective Attention: Enhancing Transformer through Principled Context
Control", 2024, arXiv:2411.12892.
Limits: tau = 1 and gate = 1 are softmax attention.
Differs: temperatures are tanh(f(x)) + position_temperature in the paper, f a small network on the
token: its parameters belong to a layer. The released code has the part of the position alone, on
the query, with c = exp(-exp(beta)), beta = 1.5 or 2 at first; c = sigmoid in the paper.
"""

import jax.numpy as jnp

from attnjax.core import masks, mods
from attnjax.core.numerics import clean, finite, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, normal
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, K, Out, PerQuery, Q, V


def position_temperature(length: int, c: Float[Array, ""] | float) -> Float[Array, " T"]:
    """1 + c log n for n = 1 .. length: queries grow sharper as there are more keys to choose of."""
    return 1.0 + jnp.asarray(c, float) * jnp.log(jnp.arange(1.0, length + 1.0))


@on_any_mesh
def selective_self_attention(
    q: Q,
    k: K,
    v: V,
    tau: PerQuery,
    gate: Float[Array, "B S K"],
    *,
    mask: masks.Mask = masks.causal,
    impl: Impl = None,
) -> Out:
    """A value with gate 0 counts as zero, and keeps its weight."""
    values, bad = clean(wide(v))
    gated = finite(gate)[..., None] * values + bad[..., None]
    sharp = mods.mod(_times, query=tau)
    return attend(q, k, gated.astype(v.dtype), mods=(sharp,), mask=mask, impl=impl)


def _times(score: Array, tau: Array) -> Array:
    return tau * score


OPS = (
    Op(
        selective_self_attention,
        papers=(110,),
        draw={"tau": normal(0.5, 1.5), "gate": normal(0.5, 1.0)},
        limits=(
            Limit(
                "tau = 1, gate = 1: softmax attention",
                {"tau": fill(1.0), "gate": fill(1.0)},
                causal_attention,
            ),
        ),
    ),
)
