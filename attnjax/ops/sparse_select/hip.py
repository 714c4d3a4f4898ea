"""HiP: a search by halves for the blocks of keys that a block of queries likes best.

    keys between the sinks and the window of a block of queries, as blocks: M spans of them
    each round:  cut spans in halves; the score of a half is the largest q_i . k_j of every second
                 query i and the keys j <= i - window of the block in its middle; keep the M best
    until a span is a block, in log2(blocks / M) rounds
    out_i = softmax of q_i . k_j / sqrt(H) over j <= i in these blocks, the first `sinks` keys and
            the last `window`

Paper: Lee et al., "A Training-free Sub-quadratic Cost Transformer Model Serving Framework With
Hierarchically Pruned Attention", 2024, arXiv:2406.09827; code: DeepAuto-AI/hip-attention, v1.1.
Limits: top_k of all keys is causal attention.
Differs: spans are as even as they can be, those of the code's draft in Python. Its kernel rounds
their ends down to multiples, so that it may never look at some blocks before the window.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import einsum, repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend_state, join_states
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Int, Out, Q, TokenK, TokenV

Spans = Int[Array, "B U N M"]


@of_whole_text
@on_any_mesh
def hip_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    top_k: int = 512,
    block_q: int = 64,
    block_k: int = 2,
    window: int = 256,
    sinks: int = 16,
    impl: Impl = None,
) -> Out:
    """Causal attention to `top_k` keys that are searched for, sinks and a window, O(T log T).

    Each head of each `block_q` queries chooses for itself, without gradient. The choice of a query
    depends on later ones of its block.
    """
    chosen = hip_blocks(
        q, k, top_k=top_k, block_q=block_q, block_k=block_k, window=window, sinks=sinks
    )
    dtype, q, k, v = q.dtype, wide(q), wide(k), wide(v)
    near = masks.window(window - 1) | masks.sinks(sinks)
    always = attend_state(q, k, v, mask=masks.causal & near, impl=impl)
    found = attend_state(q, k, v, blocks=chosen, mask=masks.causal & ~near, impl=impl)
    return join_states(always, found).astype(dtype)


@on_any_mesh
def hip_blocks(
    q: Q, k: TokenK, *, top_k: int, block_q: int, block_k: int, window: int, sinks: int
) -> Selection:
    """What is found: at most ceil(top_k / block_k) blocks for each block of queries, X = N."""
    sizes = {"top_k": top_k, "block_q": block_q, "block_k": block_k, "window": window}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}: {value}; expected at least 1")
    if sinks < 0 or sinks % block_k:
        raise ValueError(f"sinks: {sinks}; expected a multiple of block_k = {block_k}")
    q, k = lax.stop_gradient((q, k))
    (B, T, N, _), M = q.shape, -(-top_k // block_k)
    end = np.minimum(block_q * np.arange(1, -(-T // block_q) + 1), T)
    n = -(-np.maximum(end - window - sinks, 0) // block_k)  # how many blocks there are to search
    cuts = np.arange(M + 1) * n[:, None] // M
    cuts = np.where(n[:, None] <= M, np.minimum(np.arange(M + 1), n[:, None]), cuts)
    each = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.int32)[None, :, None], (B, len(n), N, M))
    first, size = each(cuts[:, :-1]), each(np.diff(cuts))
    longest = int(np.diff(cuts).max(initial=1))
    for _ in range((longest - 1).bit_length()):
        first, size = _best_halves(q, k, first, size, block_q, block_k, window, sinks)
    return Selection(first + sinks // block_k, size > 0, block_q, block_k)


def _best_halves(
    q: Q,
    k: TokenK,
    first: Spans,
    size: Spans,
    block_q: int,
    block_k: int,
    window: int,
    sinks: int,
) -> tuple[Spans, Spans]:
    """The M best of the 2 M halves of spans of blocks; an empty half only where others lack."""
    (B, U, N, M), T = first.shape, q.shape[1]
    left = size // 2
    both = lambda a, b: jnp.stack([a, b], axis=-1).reshape(B, U, N, 2 * M)
    first, size = both(first, first + left), both(left, size - left)
    keys = select.blocks_of(repeat_heads(k[:, sinks:], q), block_k)[0]  # (B,n,block_k,N,H)
    middle = jnp.minimum(first + size // 2, keys.shape[1] - 1)
    at = jnp.swapaxes(middle, 2, 3).reshape(B, U * 2 * M, N)[:, :, None, :, None]
    keys = jnp.take_along_axis(keys, at, axis=1).reshape(B, U, 2 * M, *keys.shape[2:])
    rows = select.blocks_of(q, block_q)[0][:, :, ::2]
    scores = einsum("BUtNH,BUmcNH->BUNmtc", rows, keys)
    i = block_q * np.arange(U)[:, None] + np.arange(block_q)[::2]
    inside = sinks + np.arange(block_k, dtype=np.int32).reshape(1, 1, 1, 1, -1)
    j = block_k * middle[..., None] + inside
    last = np.where(i < T, i - window, -1)[None, :, None, None, :, None]
    seen = jnp.where(j[..., None, :] <= last, scores, jnp.finfo(scores.dtype).min).max((-2, -1))
    best = lax.top_k(jnp.where(size > 0, seen, -jnp.inf), M)[1]
    take = lambda x: jnp.take_along_axis(x, best, axis=-1)
    return take(first), take(size)


OPS = (
    Op(
        hip_attention,
        papers=(144,),
        reads="all",
        draw={"top_k": 2, "block_q": 4, "block_k": 1, "window": 1, "sinks": 1},
        limits=(Limit("all keys chosen is causal attention", {"top_k": 99}, causal_attention),),
    ),
)
