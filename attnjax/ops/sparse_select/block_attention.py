"""Block-attention: passages do not see each other, so the keys of each may be cached alone.

    A_ij = softmax_j(q_i . k_j / sqrt(H)) over j <= i in i's block, or over all j <= i where i is in
    the last block;    a cached block moves by D places: k'_j = R(D) k_j, v'_j = v_j

Paper: Ma, Wang and Lan, "Block-Attention for Efficient RAG", 2024, arXiv:2409.15355, section 2.
Limits: one block is causal attention.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from attnjax.core import masks
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.positions import rotary
from attnjax.core.sharding import of_whole_text
from attnjax.op import Limit, Op, by_sizes
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Int, K, Out, Q, TokenK, TokenV, V


@of_whole_text
def block_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    blocks: Int[Array, "*B T"],
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Causal attention inside blocks; the tokens of the last block see everything before them.

    `blocks` are integers (T,) or (B,T): tokens of one block share one, the last block has the
    largest, and padding any negative one. As NumPy they let tiles be skipped while tracing.
    `mask` forbids more. What a token of any other block gives does not depend on other blocks.
    """
    T, S = q.shape[1], k.shape[1]
    ids: Any = blocks if isinstance(blocks, Tracer) else np.asarray(blocks)
    if T != S or ids.shape not in ((T,), (q.shape[0], T)):
        raise ValueError(
            f"blocks: shape {ids.shape}; expected (T,) or (B,T) with T = S, here {T} and {S}"
        )
    is_last = ids == ids.max(-1, keepdims=True)
    # one document of the last block's queries and of all keys but padding, which is negative
    to_all = masks.document(is_last.astype(np.int32) - 1, -(ids < 0).astype(np.int32))
    seen = masks.causal & (masks.document(ids) | to_all)
    return attend(q, k, v, mask=seen & mask, impl=impl)


def reindex(k: K, offset: int | Int[Array, " B"], *, base: float = 10000.0) -> K:
    """Keys with rotary positions, `offset` places further on: one number, or one an example."""
    shape = (*jnp.shape(offset), k.shape[1])  # (S,) or (B,S)
    places = jnp.broadcast_to(jnp.asarray(offset)[..., None], shape)
    return rotary(k, places, base).astype(k.dtype)


def assemble(blocks: Sequence[tuple[K, V]], *, base: float = 10000.0) -> tuple[K, V]:
    """The keys and values of blocks behind each other, of (k, v) cached with positions 0, 1, 2, ...

    The last block's queries see them, and their own behind them, by `masks.causal_to_end`.
    """
    keys, values = [], []
    start = 0
    for k, v in blocks:
        keys.append(reindex(k, start, base=base))
        values.append(v)
        start += k.shape[1]
    return jnp.concatenate(keys, axis=1), jnp.concatenate(values, axis=1)


OPS = (
    Op(
        block_attention,
        papers=(194,),
        draw={"blocks": by_sizes(lambda z: np.arange(z["T"]) * 3 // z["T"])},
        limits=(
            Limit(
                "one block is causal attention",
                {"blocks": by_sizes(lambda z: np.zeros(z["T"], int))},
                causal_attention,
            ),
        ),
    ),
)
