"""Causal softmax attention with a learned forget gate.

    s_ij = q_i . k_j / sqrt(H) + c_i - c_j,    c_i = sum_{l <= i} log f_l,    f in (0, 1)

Paper: Lin et al., "Forgetting Transformer: Softmax Attention with a Forget Gate", 2025,
arXiv:2503.02130.
Limits: f = 1 is causal softmax; log f = -slope of a head is ALiBi with that slope.
Differs: the Pro block's output gate, norms and token shift belong to a layer.
"""

import jax.numpy as jnp

from attnjax.core import masks, mods
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Draw, Limit, Op, Slot, fill, log_gates
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, K, Out, PerQuery, Q, TokenK, TokenV, V


def forgetting_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_f: PerQuery,
    *,
    mask: masks.Mask = masks.causal,
    impl: Impl = None,
) -> Out:
    """Attends with scores that fade by the gates after the key, up to the query's own.

    `log_f` <= 0 is the logarithm of the gate of each token and head; T must equal S.
    """
    return attend(q, k, v, mods=(mods.forget(log_f),), mask=mask, impl=impl)


def _slopes(slot: Slot) -> Array:
    return jnp.broadcast_to(-mods.alibi_slopes(slot.sizes["N"]), slot.shape)


def _alibi(q: Q, k: K, v: V) -> Out:
    slopes = mods.alibi(mods.alibi_slopes(q.shape[2]))
    return attend(q, k, v, mods=(slopes,), mask=masks.causal)


OPS = (
    Op(
        forgetting_attention,
        papers=(137,),
        draw={"log_f": log_gates},
        limits=(
            Limit("log_f = 0 is causal softmax attention", {"log_f": fill(0.0)}, causal_attention),
            Limit("a constant log_f = -slope of a head is ALiBi", {"log_f": Draw(_slopes)}, _alibi),
        ),
    ),
)
