"""Area attention: a map cut into a few strips, attention inside each, and a local convolution.

    out = softmax(q_i . k_j / sqrt(H)) v_j over the strip of i  +  conv(v)

A strip is T / areas neighboring cells of the flattened map; the convolution, 5 x 5 or 7 x 7 for
each channel, runs over the whole map.

Paper: Tian, Ye and Doermann, "YOLOv12: Attention-Centric Real-Time Object Detectors", 2025,
arXiv:2502.12524, section 3.2; code: sunsmarterjie/yolov12, `AAttn`.
Limits: one area without a kernel is softmax attention.
Differs: where `areas` does not divide T the last strip is shorter; the code wants it to. The batch
normalization behind its convolution is in kernel and bias, as after training.
"""

import math
from collections.abc import Sequence

from attnjax.core.numerics import aligned, repeat_heads, wide
from attnjax.core.pairwise.attend import Impl
from attnjax.core.scan.convolution import depthwise_of_heads
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, normal, square_grid
from attnjax.ops.local_structured.grids import boxes
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


@of_whole_text
@on_any_mesh
def area_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    kernel: Float[Array, "Y X N D"] | None = None,
    bias: Float[Array, "N D"] | None = None,
    *,
    shape: Sequence[int],
    areas: int = 4,
    impl: Impl = None,
) -> Out:
    """Attention on a map of `shape` (rows, columns), T = S cells in row-major order.

    `kernel` and `bias` are those of the convolution of the values, None leaves them out.
    """
    T = q.shape[1]
    if math.prod(shape) != T:
        raise ValueError(f"shape: {tuple(shape)}; expected T = {T} cells")
    if areas < 1:
        raise ValueError(f"areas: {areas}; expected at least 1")
    out = boxes((T,), -(-T // areas)).attend(q, k, v, impl=impl)
    if kernel is None:
        return out
    local = depthwise_of_heads(repeat_heads(v, q), kernel, shape)
    if bias is not None:
        local += aligned(bias, local)
    return (wide(out) + local).astype(q.dtype)


OPS = (
    Op(
        area_attention,
        papers=(285,),
        reads="all",
        sizes={"Y": 5, "X": 5},
        draw={"kernel": normal(0.2), "bias": normal(), "shape": square_grid, "areas": 2},
        limits=(
            Limit(
                "one area without a kernel is softmax attention",
                {"areas": 1, "kernel": None, "bias": None},
                multi_head_attention,
            ),
        ),
    ),
)
