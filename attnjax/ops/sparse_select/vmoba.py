"""VMoBA: MoBA for video, over slabs, windows or cuboids by turns, as many as their share asks for.

    g_ib = q_i . mean(k in b),    p_ib = (g_ib - min g) / (max g - min g) over the blocks b of i
    A_ij = softmax_j(q_i . k_j / sqrt(H)) over the blocks of j: i's own, and those of largest p_ib,
           at least one, until the sum of p_ib reaches the share tau of that of all blocks
    blocks of layer l: 1D in time, 2D in space through all frames, 3D in both, by l mod 3

Paper: Wu et al., "VMoBA: Mixture-of-Block Attention for Video Diffusion Models", 2025,
arXiv:2506.23858, section 3.
Limits: tau = 1 is full attention.
Differs: as in the released code each query has a share of its own; the paper's, of all pairs (i, b)
of a head, is `vmoba_by_head`. Of equal p_ib the earliest blocks come first.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.order import BlockOrder, grid_blocks
from attnjax.core.blocks.selection import Selection
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, Sizes, by_sizes, grid
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Bool, Float, Out, Q, TokenK, TokenV

Scores = Float[Array, "B T N n"]
Own = Bool[Array, "T 1 n"]
Choose = Callable[..., Selection]  # (scores of blocks, which is the own one, block_k=)

EPS = 1e-6  # the released code's: of a whole share, and of a spread that counts as none


def vmoba_by_query(scores: Scores, own: Own, *, tau: float = 0.25, block_k: int) -> Selection:
    """The own block, and the fewest others, at least one, with which a query has the share tau."""
    return select.from_dense(_reach(lax.stop_gradient(scores), own[None], tau), block_k=block_k)


def vmoba_by_head(scores: Scores, own: Own, *, tau: float = 0.25, block_k: int) -> Selection:
    """The same with one minimum, maximum and share over all queries of a head."""
    B, T, N, n = scores.shape
    flat = lambda x: jnp.broadcast_to(x, scores.shape).transpose(0, 2, 3, 1).reshape(B, N, n * T)
    taken = _reach(flat(lax.stop_gradient(scores)), flat(own), tau)
    return select.from_dense(taken.reshape(B, N, n, T).transpose(0, 3, 1, 2), block_k=block_k)


def vmoba_top_k(scores: Scores, own: Own, *, k: int = 3, block_k: int) -> Selection:
    """k blocks for each query, the own one among them."""
    return select.top_k(jnp.where(own, jnp.inf, scores), k, block_k=block_k)


def _reach(g: Float[Array, "... n"], own: Array, tau: float) -> Bool[Array, "... n"]:
    """What is own, and the fewest largest others, at least one, that reach the share with it."""
    low = g.min(-1, keepdims=True)
    spread = g.max(-1, keepdims=True) - low
    share = (g - low) / jnp.where(spread > EPS, spread, 1.0)
    ours = jnp.where(own, share, 0.0).sum(-1, keepdims=True)
    # all of it, whatever rounding
    need = jnp.inf if tau >= 1 else tau * (share.sum(-1, keepdims=True) + EPS) - ours
    others = jnp.where(own, -1.0, share)
    order = jnp.argsort(-others, axis=-1)
    sums = jnp.cumsum(jnp.take_along_axis(others, order, -1), axis=-1)
    before = jnp.concatenate([jnp.full_like(sums[..., :1], -jnp.inf), sums[..., :-1]], axis=-1)
    return own | jnp.take_along_axis(before < jnp.maximum(need, 0.0), jnp.argsort(order), -1)


@of_whole_text
@on_any_mesh
def vmoba(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    shape: Sequence[int],
    block: Sequence[int],
    choose: Choose = vmoba_by_query,
    impl: Impl = None,
) -> Out:
    """Attention of a video's tokens, T = S = prod(shape) for (frames, rows, columns), to blocks.

    `block` has as many axes and need not divide them; `vmoba_block` gives that of a layer. `choose`
    takes g (B,T,N,n) and which block is a query's own (T,1,n): `vmoba_by_query`, `vmoba_by_head` or
    `vmoba_top_k`, with another tau or k by functools.partial.
    """
    T, S = q.shape[1], k.shape[1]
    if not T == S == math.prod(shape):
        raise ValueError(f"shape: {tuple(shape)}; expected T = {T} and S = {S} cells")
    cells = grid_blocks(shape, block)
    scores = select.dot_scores(q, cells.means(k))
    return attend(
        q,
        cells.take(k),
        cells.take(v),
        blocks=choose(scores, _own(cells, scores.shape[-1]), block_k=cells.size),
        mask=cells.seen(masks.everything, T),
        k_positions=cells.order,
        impl=impl,
    )


def _own(cells: BlockOrder, n: int) -> Own:
    """Whether token i lies in block b."""
    order, filled = np.asarray(cells.order), np.asarray(cells.filled)
    block_of = np.zeros(cells.length, int)
    block_of[order[filled]] = np.flatnonzero(filled) // cells.size
    return jnp.asarray(block_of[:, None, None] == np.arange(n))


def vmoba_block(layer: int, shape: Sequence[int], block: Sequence[int]) -> tuple[int, ...]:
    """The block of a layer: slabs of frames, windows through all frames, cuboids, and again."""
    frames, rows, columns = shape
    in_time = (block[0], rows, columns)
    in_space = (frames, *block[1:])
    return (in_time, in_space, tuple(block))[layer % 3]


def _video(z: Sizes) -> tuple[int, int, int]:
    frames = 2 - z["T"] % 2
    return (frames, *grid(z["T"] // frames))


OPS = (
    Op(
        vmoba,
        papers=(328,),
        reads="all",
        draw={
            "shape": by_sizes(_video),
            "block": (1, 2, 2),
            "choose": functools.partial(vmoba_by_query, tau=0.5),
        },
        limits=(
            Limit(
                "tau = 1 is full attention",
                {"choose": functools.partial(vmoba_by_query, tau=1.0)},
                multi_head_attention,
            ),
        ),
    ),
)
