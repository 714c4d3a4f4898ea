"""LongHeads: each head attends to a few chunks of a long text, at positions as in a short one.

    of each chunk of w tokens:  O = softmax(q' k'^T / sqrt(H)) v inside it,  x = mean of O,
                                c = softmax(x . k' / sqrt(H)) k',  q', k' turned by place in chunk
    query t of chunk u sees chunks 0, u - 1 and u, and those of largest q_t . c, `top_k` in all
    softmax over keys j <= t of these, rotary positions as if the chunks stood behind each other

A cache holds keys before their rotation, and c of each full chunk: `longheads_step` decodes.

Paper: Lu et al., "LongHeads: Multi-Head Attention is Secretly a Long Context Processor", 2024,
arXiv:2402.10685, section 2; code: LuLuLuyi/LongHeads.
Limits: top_k chunks or fewer in the text are causal attention over rotated q and k.
Differs: a query sees its own key, as where the released code decodes; where it reads a prompt it
leaves that out. Where it decodes, a query that ends a chunk sees one chunk less.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend, attend_state, join_states
from attnjax.core.positions import rotary
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, Int, K, Out, Q, TokenK, TokenV, V


@of_whole_text
@on_any_mesh
def longheads(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    chunk: int = 256,
    top_k: int = 16,
    base: float = 10000.0,
    impl: Impl = None,
) -> Out:
    """Causal attention to top_k chunks for each query of each head; q and k come before rotation.

    No distance is beyond top_k * chunk, whatever T: a model reads more than it was trained on. The
    latest chunk that is seen stands where it would in a text of the chunks that are seen. Needs
    D = H, as summaries of values are compared with keys, and top_k of 3 at least.
    """
    chosen = longheads_chunks(q, k, v, chunk=chunk, top_k=top_k, base=base, impl=impl)
    return _over_chunks(q, k, v, chosen, None, base, impl)


def _over_chunks(
    q: Q, k: K, v: V, chosen: Selection, at: Int[Array, " T"] | None, base: float, impl: Impl
) -> Out:
    """Attention to the chosen chunks, as if they stood behind each other.

    Queries stand at `at`, or with the keys if None.
    """
    (B, T, N, H), chunk = q.shape, chosen.block_k
    place = (jnp.arange(T) if at is None else at) % chunk
    M = chosen.indices.shape[-1]
    latest_first = -jnp.sort(-jnp.where(chosen.valid, chosen.indices, -1), axis=-1)
    # the m-th chunk from the end is m chunks away: a head of its own, with a rotation of its own
    turned = [rotary(q, place + m * chunk, base) for m in range(M)]
    each = latest_first.reshape(B, T, N * M, 1)
    state = attend_state(
        jnp.stack(turned, axis=3).reshape(B, T, N * M, H),
        rotary(k, jnp.arange(k.shape[1]) % chunk, base),
        wide(v),
        blocks=Selection(each, each >= 0, 1, chunk),
        mask=masks.causal,
        q_positions=at,
        impl=impl,
    )
    parts = [jax.tree.map(lambda x, m=m: x[:, m::M], state) for m in range(M)]
    return join_states(*parts).astype(q.dtype)


@on_any_mesh
def longheads_chunks(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    chunk: int = 256,
    top_k: int = 16,
    base: float = 10000.0,
    impl: Impl = None,
) -> Selection:
    """What each query and head chooses: X = N, one query a block, chunks as blocks of keys."""
    if top_k < 3 or chunk < 1 or v.shape[-1] != k.shape[-1]:
        told = f"chunk, top_k, D: {chunk}, {top_k}, {v.shape[-1]}"
        raise ValueError(f"{told}; expected at least 1, at least 3, H = {k.shape[-1]}")
    q, k, v = lax.stop_gradient((q, k, v))
    summary = _summaries(q, k, v, chunk, base, impl)
    own = np.arange(q.shape[1], dtype=np.int32) // chunk
    return _choose(q, summary, jnp.asarray(own), chunk, top_k)


def _choose(
    q: Q, summary: Float[Array, "B n N H"], own: Int[Array, " T"], chunk: int, top_k: int
) -> Selection:
    """The chunks of queries in chunks `own`: the first, the one before, the own, and by summary."""
    scores = select.dot_scores(q, summary)
    c, own = jnp.arange(summary.shape[1], dtype=own.dtype)[None], own[:, None]
    always = (c == 0) | (c == own - 1) | (c == own)
    scores = jnp.where(always[None, :, None], jnp.inf, scores)  # (B,T,N,n)
    scores = jnp.where((c <= own)[None, :, None], scores, -jnp.inf)
    return select.top_k(scores, top_k, block_k=chunk)


# ------------------------------------------------------------------------------------- decoding


class LongHeadsCache(NamedTuple):
    """Room for S tokens, a multiple of the chunk: keys before rotation, values, summaries.

    q holds the queries of the chunk that is not full yet, of which its summary will be made.
    """

    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"]
    q: Float[Array, "B C N H"]
    summary: Float[Array, "B n N H"]
    count: Int[Array, ""]


def empty_cache(q: Q, k: TokenK, *, room: int, chunk: int = 256) -> LongHeadsCache:
    """A cache of no tokens, for heads, widths and dtypes of q and k; `room` is of whole chunks."""
    if room < 1 or room % chunk:
        raise ValueError(f"room: {room}; expected a multiple of chunk = {chunk}")
    (B, _, N, H), K = q.shape, k.shape[2]
    keys = jnp.zeros((B, room, K, H), k.dtype)
    summary = jnp.zeros((B, room // chunk, N, H), k.dtype)
    return LongHeadsCache(
        keys, keys, jnp.zeros((B, chunk, N, H), q.dtype), summary, jnp.zeros((), jnp.int32)
    )


@on_any_mesh
def longheads_step(
    q: Q,
    k: TokenK,
    v: TokenV,
    cache: LongHeadsCache,
    *,
    top_k: int = 16,
    base: float = 10000.0,
    impl: Impl = None,
) -> tuple[Out, LongHeadsCache]:
    """What `longheads` gives for the next token, T = 1, and the cache behind it.

    Reads a summary of each chunk, and top_k chunks; a chunk that is full gets its summary then.
    """
    chunk, at = cache.q.shape[1], cache.count
    place = at % chunk
    put = lax.dynamic_update_slice_in_dim
    keys, values = put(cache.k, k, at, 1), put(cache.v, v, at, 1)
    queries = put(cache.q, q, place, 1)

    def summed() -> Array:
        own_k, own_v = (lax.dynamic_slice_in_dim(x, at - place, chunk, 1) for x in (keys, values))
        made = _summaries(queries, own_k, own_v, chunk, base, impl)
        return put(cache.summary, made.astype(cache.summary.dtype), at // chunk, 1)

    summary = lax.cond(place == chunk - 1, summed, lambda: cache.summary)
    chosen = _choose(q, cache.summary, (at // chunk)[None], chunk, top_k)
    out = _over_chunks(q, keys, values, chosen, at[None], base, impl)
    return out, LongHeadsCache(keys, values, queries, summary, at + 1)


def _summaries(
    q: Q, k: TokenK, v: TokenV, chunk: int, base: float, impl: Impl
) -> Float[Array, "B n N H"]:
    """c of each chunk and query head."""
    place, chunk_of = jnp.arange(q.shape[1]) % chunk, np.arange(q.shape[1]) // chunk
    q, k = rotary(q, place, base), rotary(k, place, base)
    inside = masks.document(chunk_of)
    read = select.mean_pool(attend(q, k, wide(v), mask=inside, impl=impl), chunk).astype(k.dtype)
    of_chunk = masks.document(np.arange(read.shape[1]), chunk_of)
    return attend(read, k, k, mask=of_chunk, impl=impl)


def _rotated(q: Q, k: TokenK, v: TokenV) -> Out:
    q, k = (rotary(x, jnp.arange(x.shape[1])) for x in (q, k))
    return causal_attention(q, k, v)


OPS = (
    Op(
        longheads,
        papers=(254,),
        draw={"chunk": 2, "top_k": 3},
        limits=(Limit("all chunks chosen is causal attention", {"top_k": 99}, _rotated),),
    ),
)
