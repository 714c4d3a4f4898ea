"""Dynamic mask attention: values say how much their keys matter; a query sees the top of those.

    delta_j = exp(a softplus(v_j w)) for each key head, v_j the values of all key heads
    A_ij = softmax_j(q_i . k_j / sqrt(H) + delta_j) over the `window` keys j <= i of largest delta,
           the earlier of two equal ones first

Paper: Shi et al., "Trainable Dynamic Mask Sparse Attention", 2025, arXiv:2508.02124, section 3.
Limits: a window of all keys is causal attention with delta added; with a = 0 causal attention.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import masks, mods
from attnjax.core.blocks import select
from attnjax.core.blocks.order import running_kth
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import finite, repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill, normal
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, Int, K, Out, Q, V


@of_whole_text
@on_any_mesh
def dynamic_mask_attention(
    q: Q,
    k: K,
    v: V,
    w: Float[Array, "W K"],
    a: Float[Array, " K"],
    *,
    window: int = 2048,
    block_size: int = 64,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Causal attention to at most `window` keys; gradients reach w (K * D, K) and a by delta.

    A key is seen from its own query on until `window` better ones have come: one number for each
    key, its last query, is the mask, O(S) memory. Blocks of `block_size` in which nothing is seen
    are skipped. `mask` forbids more, but does not choose.
    """
    S, heads, D = v.shape[1:]
    if w.shape != (heads * D, heads) or window < 1:
        told = f"w and window: {w.shape}, {window}"
        raise ValueError(f"{told}; expected (K*D,K) = {(heads * D, heads)}, at least 1")
    values = finite(v).reshape(len(v), S, heads * D)
    read = jnp.matmul(values, wide(w), precision=lax.Precision.HIGHEST)
    log_delta = wide(a)[None, None] * jax.nn.softplus(read)
    last = jax.vmap(jax.vmap(partial(_last_query, window=window), 1, 1))(log_delta)  # (B,S,K)
    seen = masks.causal & masks.until(jnp.moveaxis(repeat_heads(last, q), 2, 1))
    return attend(
        q,
        k,
        v,
        blocks=_blocks_seen(last, q.shape[1], block_size),
        mods=(mods.mod(jnp.add, key=jnp.exp(log_delta)),),
        mask=seen & mask,
        impl=impl,
    )


def _blocks_seen(last: Int[Array, "B S K"], T: int, size: int) -> Selection:
    """Blocks with a key that a query of the block, or a later one, sees."""
    B, S, heads = last.shape
    ends = jnp.pad(last, ((0, 0), (0, -S % size), (0, 0)))
    ends = jnp.swapaxes(ends.reshape(B, 1, -(-S // size), size, heads).max(3), 2, 3)
    ahead = ends - np.arange(0, T, size)[None, :, None, None]  # (B,U,K,n)
    scores = select.causal_scores(ahead.astype(jnp.float32), size, size)
    return select.threshold(scores, 0.0, block_q=size, block_k=size)


def _last_query(score: Float[Array, " S"], window: int) -> Int[Array, " S"]:
    """The last query for which each key is among the `window` best so far; 2^30 is no end."""
    S = len(score)
    rank = jnp.argsort(jnp.argsort(-score, stable=True))  # 0 is the best
    worst_seen = running_kth(rank, window)  # falls from query to query
    queries = jnp.searchsorted(-worst_seen, -rank, side="right")  # those that still see the key
    return jnp.where(queries == S, 1 << 30, queries - 1).astype(jnp.int32)


OPS = (
    Op(
        dynamic_mask_attention,
        papers=(63,),
        draw={"w": normal(0.3), "window": 4, "block_size": 2},
        sizes={"W": 16},
        exempt={"grouped": "w reads the values of all key heads, and is another for more of them"},
        limits=(Limit("a = 0 is causal", {"window": 99, "a": fill(0.0)}, causal_attention),),
    ),
)
