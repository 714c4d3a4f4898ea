"""Retention: linear attention that fades at a fixed rate, another one for each head.

    o_i = sum_{j <= i} g_n^(i - j) (q_i . k_j / sqrt(H)) v_j,    g_n = 1 - 2^(-5 - n)

Paper: Sun et al., "Retentive Network: A Successor to Transformer for Large Language Models", 2023,
arXiv:2307.08621, section 2.
Limits: g = 1 is linear attention without a normalizer.
Differs: the rotation of q and k, the norm of each head and the gate belong to a layer.
"""

import math
from typing import Any

import jax.numpy as jnp

from attnjax.core.numerics import wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.op import Limit, Op, fill
from attnjax.typing import Out, PerHead, Q, TokenK, TokenV


def retention_log_decays(heads: int) -> PerHead:
    """log(1 - 2^(-5 - n)) for n = 0 .. heads - 1: the later a head, the longer it remembers."""
    return jnp.log1p(-jnp.exp2(-5.0 - jnp.arange(heads, dtype=float)))


def retention(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_decay: PerHead | None = None,
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal retention; `log_decay` is that of `retention_log_decays` if None."""
    if log_decay is None:
        log_decay = retention_log_decays(q.shape[2])
    return linear_attend(
        wide(q) / math.sqrt(q.shape[-1]),
        k,
        v,
        log_decay=log_decay,
        documents=documents,
        state=state,
        return_state=return_state,
        impl=impl,
    )


def _linear(q: Q, k: TokenK, v: TokenV) -> Out:
    return linear_attend(q / math.sqrt(q.shape[-1]), k, v)


OPS = (
    Op(
        retention,
        limits=(
            Limit(
                "g = 1 is linear attention without a normalizer",
                {"log_decay": fill(0.0)},
                _linear,
            ),
        ),
    ),
)
