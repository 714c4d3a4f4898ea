"""HiLo attention: some heads attend inside small windows, the others to means of these windows.

    high frequencies, heads 0 .. N - l - 1:  softmax(q_i . k_j / sqrt(H)) v_j,  j in i's window
    low frequencies, the last l heads:       softmax(q_i . m_w / sqrt(H)) u_w,  m_w and u_w the
                                             means of k and v over window w, for all windows

l = floor(alpha N), or all heads for windows of one cell. Keys that are linear in a token are the
same from the mean token as by the mean of keys. Each part has an output map of its own, and their
results stand one behind the other.

Paper: Pan, Cai and Zhuang, "Fast Vision Transformers with HiLo Attention", 2022, arXiv:2205.13213,
section 4.
Limits: windows of one cell are softmax attention; alpha = 0 is attention inside windows.
Differs: windows over the edge have fewer cells, where the code wants maps that windows divide.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from attnjax.core.blocks.order import grid_blocks
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, square_grid
from attnjax.ops.local_structured.grids import PerAxis, per_axis, window_attention
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Out, Q, TokenK, TokenV


@of_whole_text
@on_any_mesh
def hilo_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    shape: Sequence[int],
    window: PerAxis = 2,
    alpha: float = 0.5,
    impl: Impl = None,
) -> Out:
    """Attention on a grid, T = S = prod(shape) cells in row-major order; the models have alpha 0.9.

    `window` is one number for all axes or one each. Raises ValueError for alpha outside 0 .. 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: {alpha}; expected a share of the heads, from 0 to 1")
    N, size = q.shape[2], per_axis("window", window, len(shape))
    high = 0 if set(size) == {1} else N - int(N * alpha)
    k, v = repeat_heads(k, q), repeat_heads(v, q)
    parts = []
    if high:
        near = (x[:, :, :high] for x in (q, k, v))
        parts.append(window_attention(*near, shape=shape, window=size, impl=impl))
    if high < N:
        windows = grid_blocks(shape, size)
        keys, values = (windows.means(x[:, :, high:]) for x in (k, v))
        low = attend(wide(q[:, :, high:]), keys, values, impl=impl)
        parts.append(low.astype(q.dtype))
    return jnp.concatenate(parts, axis=2)


OPS = (
    Op(
        hilo_attention,
        papers=(276,),
        reads="all",
        sizes={"T": 15, "S": 15},
        draw={"shape": square_grid, "window": (2, 2)},
        limits=(
            Limit("windows of one cell are softmax attention", {"window": 1}, multi_head_attention),
            Limit(
                "alpha = 0 is attention inside windows",
                {"alpha": 0.0},
                window_attention,
            ),
        ),
    ),
)
