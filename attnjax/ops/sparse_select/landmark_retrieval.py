"""Landmark attention at inference: each query retrieves the blocks whose landmarks it likes best.

    block b of i's: its own, and the top_k earlier ones of largest s_i,landmark(b)
    w_ij as in `landmark_attention`, over these blocks alone
    with `base`:  s_ij = R(m(i)) q_i . R(m(j)) k_j / sqrt(H), where m keeps the distances to the own
    block and to the top_k blocks before it, and puts all earlier ones where the next would be

Paper: Mohtashami and Jaggi, "Landmark Attention: Random-Access Infinite Context Length for
Transformers", 2023, arXiv:2305.16300, section 3.2 and its positions for long contexts.
Limits: all blocks retrieved is landmark_attention, with `base` over rotated q and k.
Differs: the paper's local context is a chunk of several blocks, here it is the own block, and each
query retrieves for itself. Earlier blocks share one place here; the paper then spreads those that
are retrieved over places that are free, which depends on the query's choice and would need keys
rotated for each query.
"""

import functools
from dataclasses import replace

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend, attend_state, join_states
from attnjax.core.positions import rotary
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.sparse_select.landmark import gated_by_landmarks, landmark_attention
from attnjax.typing import K, Out, Q, V


@of_whole_text
@on_any_mesh
def landmark_retrieval(
    q: Q,
    k: K,
    v: V,
    *,
    block: int = 50,
    top_k: int = 4,
    heads: int | None = None,
    base: float | None = None,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """`landmark_attention` to the query's own block and to the `top_k` earlier ones it retrieves.

    Each query head retrieves for itself; or `heads`, K or 1, retrieve by the largest score of their
    query heads. With `base` q and k come before rotary positions, and no distance is beyond
    (top_k + 2) blocks: a model may read more tokens than it was trained on. `mask` forbids more,
    but does not retrieve.
    """
    _check(q, k, top_k, heads)
    gate = gated_by_landmarks(block)
    group = block + 1
    seen = masks.causal & mask
    near = far = q, k
    if base is not None:
        near, far = _rotated(q, k, group, top_k, base)
    n = -(-k.shape[1] // group)
    own = jnp.arange(q.shape[1])[None, :, None, None] // group
    recent = own - jnp.arange(n).reshape(1, 1, 1, -1) <= top_k  # blocks whose distance is kept
    scores = jnp.where(recent, _of_landmarks(*near, block, n), _of_landmarks(*far, block, n))
    chosen = _retrieved(scores, group, top_k, heads)
    if base is None:
        return attend(q, k, v, mods=(gate,), mask=seen, blocks=chosen, impl=impl)
    is_near = own - chosen.indices <= top_k
    near_blocks = replace(chosen, valid=chosen.valid & is_near)
    far_blocks = replace(chosen, valid=chosen.valid & ~is_near)
    state = functools.partial(attend_state, mods=(gate,), mask=seen, impl=impl)
    close = state(*near, wide(v), blocks=near_blocks)
    distant = state(*far, wide(v), blocks=far_blocks)
    return join_states(close, distant).astype(q.dtype)


def _check(q: Q, k: K, top_k: int, heads: int | None) -> None:
    N, kv_heads = q.shape[2], k.shape[2]
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
        raise ValueError(f"top_k: {top_k!r}; expected an integer of at least 0")
    if heads not in (None, N, kv_heads, 1):
        raise ValueError(f"heads: {heads}; expected None, N = {N}, K = {kv_heads} or 1")


def _rotated(q: Q, k: K, group: int, top_k: int, base: float) -> tuple[tuple[Q, K], tuple[Q, K]]:
    """(q, k) at their own places, and as they meet where all earlier blocks share one place."""
    i, j = jnp.arange(q.shape[1]), jnp.arange(k.shape[1])
    near = rotary(q, i, base), rotary(k, j, base)
    far = rotary(q, (top_k + 1) * group + i % group, base), rotary(k, j % group, base)
    return near, far


def _of_landmarks(q: Q, k: K, block: int, n: int) -> select.BlockScores:
    """Of n blocks, (B,T,N,n); -inf for the last where it has no landmark."""
    scores = select.dot_scores(q, k[:, block :: block + 1])
    none = [(0, 0)] * 3 + [(0, n - scores.shape[-1])]
    return jnp.pad(scores, none, constant_values=-jnp.inf)


def _retrieved(scores: select.BlockScores, group: int, top_k: int, heads: int | None) -> Selection:
    """The own block and top_k earlier ones, of `heads` that retrieve by the largest score."""
    B, T, N, n = scores.shape
    together = scores.reshape(B, T, heads or N, N // (heads or N), n).max(3)
    ranked = select.causal_scores(together, 1, group)
    return select.top_k(ranked, top_k + 1, block_k=group)


def _of_all_blocks(q: Q, k: K, v: V, block: int, base: float) -> Out:
    q, k = rotary(q, jnp.arange(q.shape[1]), base), rotary(k, jnp.arange(k.shape[1]), base)
    return landmark_attention(q, k, v, block=block)


OPS = (
    Op(
        landmark_retrieval,
        papers=(281,),
        draw={"block": 3, "top_k": 1, "base": 10.0},
        limits=(Limit("all blocks retrieved is landmark attention", {"top_k": 9}, _of_all_blocks),),
    ),
)
