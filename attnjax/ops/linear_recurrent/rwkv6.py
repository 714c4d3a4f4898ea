"""RWKV-6 (Finch): a token reads the state before it writes, and itself with another weight.

    o_t = r_t . (S_{t-1} + diag(u) k_t v_t^T),    S_t = diag(w_t) S_{t-1} + k_t v_t^T

Paper: Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", 2024,
arXiv:2404.05892, section 4.
Limits: u = 1 and w = 1 is linear attention without a normalizer.
Differs: r is named q here; w comes as its logarithm, -exp(x) in the paper; the token shifts, the
norm of each head and the gate belong to a layer.
"""

from typing import Any

import jax.numpy as jnp

from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.recurrence.documents import Packed
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend, packed_documents
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, log_gates
from attnjax.ops.linear_recurrent.linear import plain_sums
from attnjax.typing import Array, Float, Q, TokenK, TokenV

_FIRST = ((0, 0), (1, 0), (0, 0), (0, 0))  # a token of zeros before the others
_LAST = ((0, 0), (0, 1), (0, 0), (0, 0))


@on_any_mesh
def rwkv6(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_decay: Float[Array, "B T N H"],
    u: Float[Array, "N H"],
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Linear attention to the tokens before, each channel fading, plus u for the token itself."""
    q, keys, values = wide(q), repeat_heads(wide(k), q), repeat_heads(wide(v), q)
    own = jnp.sum(q * wide(u)[None, None] * keys, axis=-1, keepdims=True) * values
    of = packed_documents(documents, q, state, impl)
    if of is not None:
        # a first token has none before it in its document; padding reads and writes nothing
        q, keys = of.without_first(q), of.without_padding(keys)
        values, log_decay = of.without_padding(values), of.without_padding(log_decay)
    # One token earlier the state is S_{t-1}: a first token that writes nothing makes room.
    out, last = linear_attend(
        jnp.pad(q, _LAST),
        jnp.pad(keys, _FIRST),
        jnp.pad(values, _FIRST),
        log_decay=jnp.pad(wide(log_decay), _FIRST),
        documents=None if of is None else _one_earlier(of, state),
        state=state,
        return_state=True,
        impl=impl,
    )
    out = (out[:, :-1] + own).astype(v.dtype)
    out = out if of is None else of.without_padding(out)
    return (out, last) if return_state else out


def _one_earlier(of: Packed, state: State | None) -> Documents:
    """The documents of the tokens behind one more: where padding stands, of the token before it."""
    known = None if state is None else state.document
    first = of.current[:, :1] if known is None else known[:, None]
    return jnp.concatenate([first.astype(of.current.dtype), of.current], axis=1)


OPS = (
    Op(
        rwkv6,
        draw={"log_decay": log_gates},
        limits=(
            Limit(
                "u = 1 and w = 1 is linear attention without a normalizer",
                {"log_decay": fill(0.0), "u": fill(1.0)},
                plain_sums,
            ),
        ),
    ),
)
