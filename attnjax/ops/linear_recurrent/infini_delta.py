"""Infini-attention whose memory is written by the delta rule.

    M_s = M_{s-1} + phi(K_s)^T (V_s - phi(K_s) M_{s-1} / (phi(K_s) . z_{s-1}))

and all else as in `infini_attention`: what the memory already says of a key is not added again.

Paper: Munkhdalai, Faruqui and Gopal, "Leave No Context Behind: Efficient Infinite Context
Transformers with Infini-attention", 2024, arXiv:2404.07143, section 2.1.2.
Limits: beta -> -inf is causal softmax attention within segments; in the first segment nothing is
known, so up to the end of the second it is `infini_attention`.
"""

from typing import Any

from attnjax.core import features
from attnjax.core.recurrence.linear import State
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.linear_recurrent.infini import (
    EXEMPT,
    INPUTS,
    LIMITS,
    Code,
    by_segments,
    infini_attention,
    recall,
)
from attnjax.typing import Array, PerHead, Q, TokenK, TokenV


@on_any_mesh
def infini_delta_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    beta: PerHead,
    *,
    segment: int = 2048,
    code: Code = features.identity,
    state: State | None = None,
    return_state: bool = False,
) -> Any:
    """As `infini_attention`; a state is handed on where a segment ends."""
    out, state = by_segments(_unknown, q, k, v, beta, segment, code, state)
    return (out, state) if return_state else out


def _unknown(state: State, keys: Array, values: Array) -> Array:
    """What the memory does not say of the keys yet."""
    return values - recall(state, keys)


OPS = (
    Op(
        infini_delta_attention,
        papers=(135,),
        draw=INPUTS,
        limits=(
            *LIMITS,
            Limit("two segments are those of infini_attention", {"segment": 5}, infini_attention),
        ),
        exempt=EXEMPT,
    ),
)
