"""Inward sliding windows: each query of a video sees as many keys as a frame of training had.

    s_ij = q_i . k_j sqrt(log_F(2 F) / H),    F = rows * columns of a frame of training
    j in all frames, within rows // 2 and columns // 2 of i's place, shifted inward at the borders

so that a model may make larger frames than it was trained with. It runs beside full attention on
the same scale, whose cross-attention to the text takes the place of the windows' own: that may be
computed at a few steps of denoising and kept between. The unconditional pass has windows alone.

Paper: Wu et al., "FreeSwim: Revisiting Sliding-Window Attention Mechanisms for Training-Free
Ultra-High-Resolution Video Generation", 2025, arXiv:2511.14712; code: WillWu111/FreeSwim.
Limits: windows that reach over the whole frame are softmax attention, but for its scale.
"""

import math
from collections.abc import Sequence

from attnjax.core import masks
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text
from attnjax.op import Limit, Op, Sizes, by_sizes, grid
from attnjax.typing import Out, Q, TokenK, TokenV


@of_whole_text
def inward_window_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    shape: Sequence[int],
    trained: Sequence[int] = (30, 52),
    impl: Impl = None,
) -> Out:
    """Attention in a video of `shape` (frames, rows, columns), T = S cells in row-major order.

    `trained` is the size of a frame of training, (rows, columns). Raises ValueError where these are
    no three and two lengths, or the cells are not T.
    """
    if len(shape) != 3 or len(trained) != 2 or math.prod(shape) != q.shape[1]:
        raise ValueError(
            f"shape, trained: {tuple(shape)}, {tuple(trained)}; expected (frames, rows, columns) "
            f"of T = {q.shape[1]} cells and (rows, columns)"
        )
    spans = zip(trained, shape[1:], strict=True)
    window = (shape[0], *(min(n // 2 * 2 + 1, extent) for n, extent in spans))
    near = masks.neighborhood(shape, window)
    return attend(q, k, v, mask=near, scale=entropy_scale(trained, q.shape[3]), impl=impl)


def entropy_scale(trained: Sequence[int], H: int) -> float:
    """sqrt(log_F(2 F) / H) for frames of F cells, at least 2."""
    cells = max(math.prod(trained), 2)
    return math.sqrt(math.log(2 * cells, cells) / H)


def _video(z: Sizes) -> tuple[int, int, int]:
    frames = 2 - z["T"] % 2
    return (frames, *grid(z["T"] // frames))


def _whole(q: Q, k: TokenK, v: TokenV, trained: Sequence[int]) -> Out:
    return attend(q, k, v, scale=entropy_scale(trained, q.shape[3]))


OPS = (
    Op(
        inward_window_attention,
        papers=(347,),
        reads="all",
        sizes={"T": 24, "S": 24},
        draw={"shape": by_sizes(_video), "trained": (2, 3)},
        limits=(Limit("windows over the whole frame see everything", {"trained": (6, 8)}, _whole),),
    ),
)
