"""Axial attention: every cell of a grid attends along one axis, to the cells of its row.

    A_ij = softmax_j(q_i . k_j / sqrt(H)),    j differs from i in the coordinate of `axis` alone

One axis after the other reaches every cell, at a cost like the sum of their lengths.

TLOB has pairs of such layers on a table of steps and features, x (B,T,F): tokens are the steps,
F wide, then the features, T wide. Heads are as wide as a token, and q, k and v go through one map
to W channels for each head and through a second one; then an output map, plus x, a layer norm, an
MLP, and plus x again where it keeps the width.

SepFormer cuts a sequence into n chunks of K frames that overlap by half, x (B,n,K,W): layers inside
chunks, a norm, plus x, then layers across chunks at each place, a norm, plus what was there;
overlaps are added at the end. With K near sqrt(T) it costs T sqrt(T).

TSCAN cuts 48 steps of 12 in each of four segments: an encoder reads the first, three decoders read
theirs and the result so far; beside it the same with features for tokens.

Paper: Berti and Kasneci, "TLOB: A Novel Transformer Model with Dual Attention for Stock Price Trend
Prediction with Limit Order Book Data", 2025, arXiv:2502.15757; Subakan et al., "Attention is All
You Need in Speech Separation", 2020, arXiv:2010.13154; Nie et al., "Temporal-spatial Correlation
Attention Network for Clinical Data Analysis in Intensive Care Unit", 2023, arXiv:2306.01970; the
axes are those of Ho et al., "Axial Attention in Multidimensional Transformers", 2019,
arXiv:1912.12180.
Limits: the only axis of a line is softmax attention.
"""

from collections.abc import Sequence

from attnjax.core.pairwise.attend import Impl
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, by_sizes, square_grid
from attnjax.ops.local_structured.grids import along
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Out, Q, TokenK, TokenV


@of_whole_text
@on_any_mesh
def axial_attention(
    q: Q, k: TokenK, v: TokenV, *, shape: Sequence[int], axis: int, impl: Impl = None
) -> Out:
    """Attention along an axis of a grid, T = S = prod(shape) cells in row-major order.

    Raises ValueError where the cells are not T or the axis is none of up to three.
    """
    return along(shape, axis).attend(q, k, v, impl=impl)


OPS = (
    Op(
        axial_attention,
        papers=(230, 292, 199),
        reads="all",
        sizes={"T": 12, "S": 12},
        draw={"shape": square_grid, "axis": 0},
        limits=(
            Limit(
                "the only axis of a line is softmax attention",
                {"shape": by_sizes(lambda z: (z["T"],))},
                multi_head_attention,
            ),
        ),
    ),
)
