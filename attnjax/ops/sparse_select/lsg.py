"""LSG attention: near blocks, a thinned-out context to both sides, and global tokens.

    the first G tokens see all and are seen by all; the others are cut into blocks of `block`
    query block u sees, in one softmax of q . k / sqrt(H) with the global tokens,
      local    the tokens of blocks u - 1, u, u + 1
      sparse   block / f tokens of each of the f blocks before those, and of the f after, for the
               factor f: the longest keys of each block, or every f-th, or successive ones

Paper: Condevaux and Harispe, "LSG Attention: Extrapolation of pretrained Transformers to long
sequences", 2022, arXiv:2210.15497, section 3; code: ccdv-ai/convert_checkpoint_to_lsg, BERT's.
Limits: two blocks, or fewer, are softmax attention.
Differs: as many sparse tokens as local ones of a block on each side, the code's default. In the
code the global tokens are embeddings of their own before the text, here they are the first tokens.
Where block / factor is odd the code takes the sparse tokens to the right two too early, so that
some of the near ones count twice; here they never do. Its other reductions, by means, by the first
token's weights, by hashing, are left out; where its last block is filled up with padding, here it
is shorter. Causal with `masks.causal`.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.order import BlockOrder
from attnjax.core.blocks.selection import Selection
from attnjax.core.normalizers import State
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend, attend_state, join_states
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Int, Out, Q, TokenK, TokenV

Choose = Callable[[TokenK, int, int], Int[Array, "B t X"]]  # (keys, block, how many of each)


def largest_keys(k: TokenK, block: int, count: int) -> Int[Array, "B t K"]:
    """The `count` longest keys of each block, those of each head; no gradient."""
    inside, real = select.blocks_of(lax.stop_gradient(k), block)
    length = jnp.where(real[None, :, :, None], jnp.square(inside).sum(-1), -1.0)
    best = lax.top_k(jnp.moveaxis(length, 3, 2), count)[1]  # (B,n,K,count)
    n = best.shape[1]
    token = best + block * jnp.arange(n)[None, :, None, None]
    return jnp.moveaxis(token, 2, 3).reshape(len(k), n * count, k.shape[2])


def strided_keys(k: TokenK, block: int, count: int) -> Int[Array, "B t K"]:
    """Every f-th key, f = block / count; head g begins at its key g mod f."""
    f, (B, S, heads) = block // count, k.shape[:3]
    token = f * np.arange(-(-S // block) * count)[:, None] + np.arange(heads) % f
    return jnp.broadcast_to(jnp.asarray(token), (B, *token.shape))


def strided_parts(k: TokenK, block: int, count: int) -> Int[Array, "B t K"]:
    """`count` successive keys of each block; those of head g begin at g count, modulo block."""
    B, S, heads = k.shape[:3]
    inside = (np.arange(count)[:, None] + count * np.arange(heads)) % block
    token = inside + block * np.arange(-(-S // block))[:, None, None]
    return jnp.broadcast_to(jnp.asarray(token.reshape(-1, heads)), (B, token.size // heads, heads))


@of_whole_text
@on_any_mesh
def lsg_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    block: int = 128,
    factor: int = 2,
    leading: int = 1,
    choose: Choose = largest_keys,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Local, sparse and global attention; a token reaches (factor + 1) blocks and its own.

    leading   G, how many tokens are global
    factor    of how many keys one is kept; it divides `block`
    choose    `largest_keys`, `strided_keys`, `strided_parts`
    mask      forbids more, but does not choose
    """
    if block < 1 or factor < 1 or block % factor or leading < 0:
        told = f"block, factor, leading: {block}, {factor}, {leading}"
        raise ValueError(f"{told}; expected factor to divide block, leading at least 0")
    S, dtype = k.shape[1], q.dtype
    q, k, v = wide(q), wide(k), wide(v)
    of_all = BlockOrder(np.arange(leading), max(leading, 1), S, full=True)
    rest = np.arange(leading, S)
    parts = []
    if leading:
        parts.append(
            attend(
                q[:, :leading],
                k,
                v,
                mask=of_all.seen(mask, S),
                q_positions=np.arange(min(leading, S)),
                k_positions=np.arange(S),
                impl=impl,
            )
        )
    if len(rest):
        local, sparse = _orders(k[:, leading:], rest, block, factor, choose)

        def state(keys: BlockOrder, blocks: Selection | None = None) -> State:
            heads = 1 if blocks is None else blocks.indices.shape[2]
            return attend_state(
                q[:, leading:],
                keys.take(k),
                keys.take(v),
                blocks=blocks,
                mask=keys.seen(mask, S),
                q_positions=rest,
                k_positions=keys.positions(heads),
                impl=impl,
            )

        states = [state(local, _near(q, len(rest), block))]
        states.append(state(sparse, _far(q, k.shape[2], len(rest), block, factor)))
        states += [state(of_all)] if leading else []
        parts.append(join_states(*states))
    return jnp.concatenate(parts, axis=1).astype(dtype)


def _orders(
    k: TokenK, rest: np.ndarray, block: int, factor: int, choose: Choose
) -> tuple[BlockOrder, BlockOrder]:
    """The tokens that are not global, all of them and those that are kept, by their number."""
    first, S = int(rest[0]), int(rest[-1]) + 1
    kept = choose(k, block, block // factor)
    kept = jnp.where(kept < len(rest), kept + first, S)
    return BlockOrder(rest, block, S, full=True), BlockOrder(kept, block // factor, S)


def _near(q: Q, T: int, block: int) -> Selection:
    """The own block and its neighbors, for all heads."""
    return _around(len(q), 1, -(-T // block), np.arange(-1, 2), block, block)


def _far(q: Q, heads: int, T: int, block: int, factor: int) -> Selection:
    """What is kept of `factor` blocks on each side of those, in blocks of what is kept of one."""
    away = np.arange(2, 2 + factor)
    steps = np.concatenate([-away[::-1], away])
    return _around(len(q), heads, -(-T // block), steps, block, block // factor)


def _around(B: int, X: int, n: int, steps: np.ndarray, block_q: int, block_k: int) -> Selection:
    """Of n blocks those that are so many steps away from each."""
    there = jnp.arange(n)[:, None, None] + jnp.asarray(steps)[None, None]
    there = jnp.broadcast_to(there, (B, n, X, len(steps)))
    return Selection(there, (there >= 0) & (there < n), block_q, block_k)


OPS = (
    Op(
        lsg_attention,
        papers=(107,),
        draw={"block": 2, "factor": 2},
        limits=(Limit("two blocks are softmax attention", {"block": 4}, multi_head_attention),),
    ),
)
