"""Bi-level routing attention: regions choose regions, then their tokens attend to those tokens.

    R_uw = mean(q in region u) . mean(k in region w), over the channels of all heads
    out_i = softmax_j(q_i . k_j / sqrt(N H)) V over the tokens j of the top_k regions of largest R
            for i's region, + LCE(V)_i,    LCE a depthwise convolution over the map with a bias

Paper: Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", 2023,
arXiv:2303.08810, section 3; code: rayleizhu/BiFormer.
Limits: top_k of all regions without a kernel is softmax attention of that scale.
Differs: the paper prints 1/sqrt(H), `scale=H**-0.5`; the released code scales by the channels of
all heads. A side that `regions` does not divide has shorter, perhaps fewer, regions at its end.
"""

import math
from collections.abc import Sequence

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.order import grid_blocks
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.scan.convolution import depthwise_of_heads
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op, Sizes, by_sizes, grid, square_grid
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


@of_whole_text
@on_any_mesh
def bi_level_routing_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    kernel: Float[Array, "Y X N D"] | None = None,
    *,
    shape: Sequence[int],
    regions: int = 7,
    top_k: int = 4,
    bias: Float[Array, "N D"] | None = None,
    scale: float | None = None,
    impl: Impl = None,
) -> Out:
    """Attention on a map of `shape` (rows, columns), row by row, T = S = rows * columns.

    The map has `regions` x `regions` regions; all heads share the routing, which has no gradient.
    `kernel`, 5 x 5 in the paper, is that of LCE for each channel of each query head, `bias` what it
    adds; None is none. `scale` is (N H)^-1/2 unless given.
    """
    T, S = q.shape[1], k.shape[1]
    if not T == S == math.prod(shape):
        raise ValueError(f"shape: {tuple(shape)}; expected T = {T} and S = {S} cells")
    cells = grid_blocks(shape, [-(-n // regions) for n in shape])
    affinity = select.over_group(select.dot_scores(cells.means(q), cells.means(k)), 1)
    chosen = select.top_k(affinity, top_k, block_q=cells.size, block_k=cells.size)
    out = attend(
        cells.take(q),
        cells.take(k),
        cells.take(v),
        blocks=chosen,
        mask=cells.seen(masks.everything, T),
        k_positions=cells.order,
        scale=math.prod(q.shape[2:]) ** -0.5 if scale is None else scale,
        impl=impl,
    )
    out = cells.restored(out)
    if kernel is None:
        return out
    local = depthwise_of_heads(repeat_heads(v, q), kernel, shape)
    if bias is not None:
        local += wide(bias)
    return (wide(out) + local).astype(out.dtype)


def _regions(z: Sizes) -> int:
    return math.prod(min(2, n) for n in grid(z["T"]))


def _all_regions(q: Q, k: TokenK, v: TokenV) -> Out:
    return multi_head_attention(q * q.shape[2] ** -0.5, k, v)


OPS = (
    Op(
        bi_level_routing_attention,
        papers=(42,),
        reads="all",
        draw={
            "kernel": Draw(lambda slot: slot.normal("5 5 N D", 0.2)),
            "shape": square_grid,
            "regions": 2,
            "top_k": by_sizes(lambda z: min(2, _regions(z))),
        },
        limits=(
            Limit(
                "top_k of all regions without a kernel is softmax attention",
                {"kernel": None, "top_k": by_sizes(_regions)},
                _all_regions,
            ),
        ),
    ),
)
