"""Landmark attention: a token behind each block of tokens decides what attention the block gets.

    own block:      w_ij = p_i(j) for its tokens j <= i
    earlier block:  w_ij = p_i(landmark of the block) softmax_{j' in the block}(s_ij')_j
    p_i = softmax of s_ij over the own block's tokens and the landmarks of earlier blocks,
    s_ij = q_i . k_j / sqrt(H);    landmarks themselves: w_ij = 0

Paper: Mohtashami and Jaggi, "Landmark Attention: Random-Access Infinite Context Length for
Transformers", 2023, arXiv:2305.16300, section 3.1.
Limits: one block is causal attention.
Differs: said as one softmax, over s_ij for tokens of the own block and, for tokens of an earlier
one, over s_ij - log sum exp_{j' in the block}(s_ij') + s_i,landmark. The weights are the same.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods
from attnjax.core.normalizers import lowest
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, K, Out, Q, V


def landmark_attention(
    q: Q, k: K, v: V, *, block: int = 50, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    """Causal attention over blocks of `block` tokens with a landmark token behind each.

    The tokens are those of `insert_landmarks`: block + 1 for each block, the last perhaps without
    its landmark. A landmark's own query attends as a token of its block does, to all tokens of it
    but itself. `mask` forbids more; without its landmark a block is not seen from behind.
    """
    seen = masks.causal & mask
    return attend(q, k, v, mods=(gated_by_landmarks(block),), mask=seen, impl=impl)


def gated_by_landmarks(block: int) -> mods.Mod:
    """The scores of which the weights are the softmax; `mods.Mod` for tokens in place 0, 1, ..."""
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"block: {block!r}; expected an integer of at least 1")
    return mods.mod(_gate(block), positions=True, group=block + 1)


@functools.cache
def _gate(block: int) -> Callable[..., Array]:
    group = block + 1

    def gate(score: Array, allowed: Array | None, q_pos: Array, k_pos: Array) -> Array:
        landmark = jnp.broadcast_to(k_pos % group == block, score.shape)
        ok = True if allowed is None else allowed
        inside = mods.log_sum_exp(score, ok & ~landmark, group)
        of_block = mods.log_sum_exp(score, ok & landmark, group)  # of one key: its score
        earlier = k_pos // group < q_pos // group
        shifted = jnp.where(earlier, score - inside + of_block, score)
        return jnp.where(landmark, lowest(score.dtype), shifted)  # exp of which is zero

    return gate


def insert_landmarks(tokens: Array, every: int, landmark: Array | int) -> Array:
    """(B,T,...) -> (B, T + T // every, ...): `landmark` behind each `every` tokens.

    Of token ids with the landmark's id, or of embeddings with its embedding.
    """
    T = tokens.shape[1]
    block, place = np.divmod(np.arange(T + T // every), every + 1)
    moved = jnp.take(tokens, block * every + place, axis=1, mode="clip")
    here = (place == every).reshape(-1, *(1,) * (tokens.ndim - 2))
    return jnp.where(here, jnp.asarray(landmark, tokens.dtype), moved)


def remove_landmarks(x: Array, every: int) -> Array:
    """What `insert_landmarks` was given, or what a model has made of it: (B, T + T//every, ...)."""
    places = np.arange(x.shape[1])
    return x[:, places[places % (every + 1) != every]]


OPS = (
    Op(
        landmark_attention,
        papers=(281,),
        draw={"block": 3},
        limits=(Limit("one block is causal attention", {"block": 20}, causal_attention),),
    ),
)
