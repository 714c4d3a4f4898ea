"""VMoBA: MoBA for video, over slabs, windows or cuboids by turns, as many as a head's mass needs.

    s_ib = q_i . mean(k in b) / sqrt(H),    p_ib = exp(s_ib) / sum over all pairs (i, b) of a head
    A_ij = softmax_j(q_i . k_j / sqrt(H)) over the blocks of j in the fewest pairs (i, b) whose
           p_ib reach the share tau together, and in the block of largest s_ib
    blocks of layer l: 1D in time, 2D in space through all frames, 3D in both, by l mod 3

Paper: Wu et al., "VMoBA: Mixture-of-Block Attention for Video Diffusion Models", 2025,
arXiv:2506.23858, section 3.
Limits: tau = 1 is full attention.
Differs: a query that is in none of those pairs still keeps its best block.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.order import grid_blocks
from attnjax.core.blocks.selection import Selection
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op, Sizes, by_sizes, grid
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Out, Q, TokenK, TokenV

Choose = Callable[..., Selection]  # (scores of blocks, block_k=)
QUARTER: Choose = functools.partial(select.top_p_of_head, p=0.25)


def vmoba(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    shape: Sequence[int],
    block: Sequence[int],
    choose: Choose = QUARTER,
    impl: Impl = None,
) -> Out:
    """Attention of a video's tokens, T = S = prod(shape) for (frames, rows, columns), to blocks.

    `block` has as many axes and need not divide them; `vmoba_block` gives that of a layer. `choose`
    takes p_ib (B,T,N,n), up to a factor of each head, and lists the best block of a query first:
    tau is p of select.top_p_of_head; select.top_k, so many for each query, is MoBA without order.
    """
    T, S = q.shape[1], k.shape[1]
    if not T == S == math.prod(shape):
        raise ValueError(f"shape: {tuple(shape)}; expected T = {T} and S = {S} cells")
    cells = grid_blocks(shape, block)
    scores = select.dot_scores(q, cells.means(k)) * q.shape[-1] ** -0.5
    mass = jnp.exp(scores - scores.max((1, 3), keepdims=True))
    some = jnp.maximum(mass, jnp.finfo(mass.dtype).tiny)  # tau = 1 takes what underflows, too
    chosen = choose(some, block_k=cells.size)
    chosen = replace(chosen, valid=chosen.valid.at[..., 0].set(True))  # the best block
    return attend(
        q,
        cells.take(k),
        cells.take(v),
        blocks=chosen,
        mask=cells.seen(masks.everything, T),
        k_positions=cells.order,
        impl=impl,
    )


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
            "choose": functools.partial(select.top_p_of_head, p=0.5),
        },
        limits=(
            Limit(
                "tau = 1 is full attention",
                {"choose": functools.partial(select.top_p_of_head, p=1.0)},
                multi_head_attention,
            ),
        ),
    ),
)
