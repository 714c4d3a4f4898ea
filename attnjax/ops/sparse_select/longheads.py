"""LongHeads: each head attends to a few chunks of a long text, at positions as in a short one.

    of each chunk of w tokens:  O = softmax(q' k'^T / sqrt(H)) v inside it,  x = mean of O,
                                c = softmax(x . k' / sqrt(H)) k',  q', k' turned by place in chunk
    query t of chunk u sees chunks 0, u - 1 and u, and those of largest q_t . c, `top_k` in all
    softmax over keys j <= t of these, rotary positions as if the chunks stood behind each other

Paper: Lu et al., "LongHeads: Multi-Head Attention is Secretly a Long Context Processor", 2024,
arXiv:2402.10685, section 2; code: LuLuLuyi/LongHeads.
Limits: top_k chunks or fewer in the text are causal attention over rotated q and k.
Differs: a query sees its own key, as where the released code decodes; where it reads a prompt it
leaves that out. Where it decodes, a query that ends a chunk sees one chunk less.
"""

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
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


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
    B, T, N, H = q.shape
    chosen = longheads_chunks(q, k, v, chunk=chunk, top_k=top_k, base=base, impl=impl)
    M = chosen.indices.shape[-1]
    latest_first = -jnp.sort(-jnp.where(chosen.valid, chosen.indices, -1), axis=-1)
    place = jnp.arange(T) % chunk
    # the m-th chunk from the end is m chunks away: a head of its own, with a rotation of its own
    turned = [rotary(q, place + m * chunk, base) for m in range(M)]
    each = latest_first.reshape(B, T, N * M, 1)
    state = attend_state(
        jnp.stack(turned, axis=3).reshape(B, T, N * M, H),
        rotary(k, place, base),
        wide(v),
        blocks=Selection(each, each >= 0, 1, chunk),
        mask=masks.causal,
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
    scores = select.causal_scores(select.dot_scores(q, summary), 1, chunk)
    own = np.arange(q.shape[1])[:, None] // chunk
    c = np.arange(summary.shape[1])
    always = ((c == 0) | (c == own - 1))[None, :, None]  # (1,T,1,n)
    return select.top_k(jnp.where(always, jnp.inf, scores), top_k, block_k=chunk)


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
