"""SeerAttention: a learned gate over pooled queries and keys picks the blocks that a head sees.

    s_ub = rotary(W_q mean(q in u)) . rotary(W_k [max, min, mean](k in b)) / sqrt(R)
    p_ub = softmax_b(s_ub) over the blocks of keys b that begin before the block of queries u ends
    A_ij = softmax_j(q_i . k_j / sqrt(H)) over j <= i in the chosen blocks:
           those of largest p_ub, or those with p_ub at least a threshold
    R      a gate for each token and KEY head: W_q acts on the q of its G query heads, one behind
           the other, they choose together, and the own block is always chosen

Paper: Gao et al., "SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs", 2024,
arXiv:2410.13276, section 3; Gao et al., "SeerAttention-R: Sparse Attention Adaptation for Long
Reasoning", 2025, arXiv:2506.08889; code: microsoft/SeerAttention.
Limits: all blocks chosen is causal attention over rotated q and k.
Differs: where no block is chosen a row is zero; the released code, too, keeps no place for the own
block, `keeping_own(choose)` does. The RMS norms that R's gate may have are left to the caller.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import masks
from attnjax.core.blocks import block_maps, select
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import finite, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.positions import rotary
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op, by_sizes, fill, normal
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V

BlockSizes = tuple[int, int]  # of queries, of keys
Choose = Callable[..., Selection]  # (scores of blocks, block_q=, block_k=)
SIXTEEN: Choose = functools.partial(select.top_k, k=16)


@of_whole_text
@on_any_mesh
def seer_attention(
    q: Q,
    k: K,
    v: V,
    w_q: Float[Array, "N H R"],
    w_k: Float[Array, "K P R"],
    *,
    blocks: BlockSizes = (64, 64),
    choose: Choose = SIXTEEN,
    base: float | None = 10000.0,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Causal attention to the blocks of keys that `choose` takes, one choice per query head.

    It is given log p_ub, -inf for blocks that begin later: partial(select.top_k, k=16) or
    partial(select.threshold, least=log(0.005)), or one of them through `keeping_own`. q and k come
    before rotary positions: attention turns them by `base`, the gate what it pooled, as the first
    token of a block; None turns neither. `blocks` are the lengths of blocks of queries and of keys.
    Queries of a block choose together, and the own block is pooled whole: the choice depends on
    later tokens of both, but with blocks (1, 64) and `keeping_own(partial(select.top_k, k=16))`.
    `mask` forbids more, but does not choose. `nn.SeerGate` owns w_q and w_k; its loss trains them.
    """
    chosen = seer_blocks(q, k, w_q, w_k, blocks, choose, base)
    q, k = (turned(x, base).astype(x.dtype) for x in (q, k))
    return attend(q, k, v, blocks=chosen, mask=masks.causal & mask, impl=impl)


@on_any_mesh
def seer_blocks(
    q: Q,
    k: K,
    w_q: Float[Array, "N H R"],
    w_k: Float[Array, "K P R"],
    blocks: BlockSizes,
    choose: Choose,
    base: float | None,
) -> Selection:
    """The blocks that `choose` takes by the gate."""
    return _by_gate(q, k, w_q, w_k, blocks, choose, base)


def _by_gate(
    q: Array,
    k: Array,
    w_q: Array,
    w_k: Array,
    blocks: BlockSizes,
    choose: Choose,
    base: float | None,
) -> Selection:
    """The same for queries of any width, such as those of a group together."""
    scores = seer_gate(q, k, w_q, w_k, blocks, base)
    begun = _begun(scores, *blocks)
    return choose(jnp.where(begun, scores, -jnp.inf), block_q=blocks[0], block_k=blocks[1])


def keeping_own(choose: Choose) -> Choose:
    """`choose` with the own block always taken; it counts within the k of a top-k."""

    def kept(scores: Array, *, block_q: int, block_k: int) -> Selection:
        settled = select.causal_scores(scores, block_q, block_k)
        return choose(settled, block_q=block_q, block_k=block_k)

    return kept


@of_whole_text
@on_any_mesh
def seer_r_attention(
    q: Q,
    k: K,
    v: V,
    w_q: Float[Array, "K F R"],
    w_k: Float[Array, "K P R"],
    *,
    block: int = 64,
    choose: Choose = SIXTEEN,
    base: float | None = 10000.0,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """SeerAttention-R: each token chooses, once for the query heads that share keys.

    F = G H, the widths of those heads together. The own block is always chosen; nothing depends on
    later tokens when `choose` takes a top-k.
    """
    B, T, N, H = q.shape
    together = q.reshape(B, T, k.shape[2], N // k.shape[2] * H)
    blocks = (1, block)
    chosen = _by_gate(together, k, w_q, w_k, blocks, keeping_own(choose), base)
    q, k = (turned(x, base).astype(x.dtype) for x in (q, k))
    return attend(q, k, v, blocks=chosen, mask=masks.causal & mask, impl=impl)


def _begun(scores: Array, block_q: int, block_k: int) -> np.ndarray:
    """(U,1,n) of scores (B,U,N,n): whether the keys' block begins before that of queries ends."""
    _, U, _, n = scores.shape
    return np.arange(n) * block_k < (np.arange(U)[:, None, None] + 1) * block_q


def seer_gate(
    q: Array,
    k: Array,
    w_q: Array,
    w_k: Array,
    blocks: BlockSizes,
    base: float | None,
) -> Array:
    """log p_ub, (B,U,N,n), about -1e30 for blocks that begin later; heads of k may share a w_k."""
    block_q, block_k = blocks
    if block_k % block_q:
        raise ValueError(f"blocks: {blocks}; expected the first to divide the second")
    keys, real = select.blocks_of(k, block_k)
    real = real[:, :, None, None]
    ends = jnp.where(real, keys, -jnp.inf).max(2), jnp.where(real, keys, jnp.inf).min(2)
    keys = jnp.concatenate([*ends, select.mean_pool(k, block_k)], axis=-1)
    w_k = jnp.repeat(wide(w_k), k.shape[2] // w_k.shape[0], axis=0)
    gate = functools.partial(jnp.einsum, "BUNH,NHR->BUNR", precision=lax.Precision.HIGHEST)
    g, h = gate(select.mean_pool(q, block_q), wide(w_q)), gate(keys, w_k)
    s = select.dot_scores(turned(g, base, block_q), turned(h, base, block_k))
    begun = _begun(s, block_q, block_k)
    return jax.nn.log_softmax(jnp.where(begun, s * w_q.shape[-1] ** -0.5, -1e30), axis=-1)


def turned(x: Array, base: float | None, step: int = 1) -> Array:
    """x with rotary positions 0, step, 2 step, ..."""
    return x if base is None else rotary(x, jnp.arange(x.shape[1]) * step, base)


@on_any_mesh
def seer_loss(
    q: Q,
    k: K,
    w_q: Float[Array, "N H R"],
    w_k: Float[Array, "K P R"],
    *,
    blocks: BlockSizes = (64, 64),
    base: float | None = 10000.0,
    mask: masks.Mask = masks.everything,
) -> Float[Array, ""]:
    """How far a gate of `seer_attention` is from the map that it shall predict: a number >= 0.

        mean over u of KL(m_ub / sum_b m_ub || p_ub),    m_ub = max of causal A over block (u, b)

    The map A is that of full attention, seen through `mask`, and is not formed: O(T) memory.
    Gradients reach w_q and w_k alone.  All rows count; the released code leaves out the first
    quarter of them.  A block of queries that sees nothing, such as padding, does not count.
    """
    q, k = lax.stop_gradient((finite(q), finite(k)))
    seen = masks.causal & mask
    peak = block_maps.block_peak(turned(q, base), turned(k, base), *blocks, mask=seen)
    total = peak.sum(-1, keepdims=True)
    share = peak / jnp.where(total > 0, total, 1.0)
    gap = jnp.log(jnp.where(share > 0, share, 1.0)) - seer_gate(q, k, w_q, w_k, blocks, base)
    rows = (total > 0).sum().astype(share.dtype)
    return jnp.where(share > 0, share * gap, 0.0).sum() / jnp.maximum(rows, 1.0)


def _no_loss() -> Float[Array, ""]:
    return jnp.zeros(())


def _few(most: int, size: int) -> Draw:
    """A top-k of `most` blocks of so many tokens, or of all where there are fewer."""
    return by_sizes(lambda z: functools.partial(select.top_k, k=min(most, -(-z["S"] // size))))


_GATE = {"w_k": normal(0.5)}
_SIZES = {"N": 6, "K": 3, "P": 24, "R": 6}
OPS = (
    Op(
        seer_attention,
        papers=(138,),
        reads="all",
        draw={**_GATE, "blocks": (2, 4), "choose": _few(1, 4)},
        sizes=_SIZES,
        limits=(
            Limit(
                "all blocks chosen is causal attention over rotated q and k",
                {"choose": _few(99, 4)},
                lambda q, k, v: multi_head_attention(
                    turned(q, 10000.0), turned(k, 10000.0), v, mask=masks.causal
                ),
            ),
        ),
    ),
    Op(
        seer_r_attention,
        papers=(138,),
        draw={**_GATE, "block": 3, "choose": _few(2, 3)},
        sizes={**_SIZES, "F": 16},
        exempt={"grouped": "a gate for each key head: more of them choose otherwise"},
    ),
    Op(
        seer_blocks,
        papers=(138,),
        draw={
            **_GATE,
            "blocks": (1, 3),
            "choose": keeping_own(functools.partial(select.top_k, k=2)),
            "base": 10000.0,
        },
        sizes=_SIZES,
    ),
    Op(
        seer_loss,
        papers=(138,),
        draw={**_GATE, "blocks": (3, 3)},
        sizes=_SIZES,
        limits=(Limit("without queries map and gate are uniform", {"q": fill(0.0)}, _no_loss),),
        exempt={
            "gradients": "only the gate learns; finite differences move with q and k, too",
            "jvp": "only the gate learns; finite differences move with q and k, too",
        },
    ),
)
