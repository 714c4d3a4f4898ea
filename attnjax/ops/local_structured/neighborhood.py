"""Neighborhood attention: every cell of a grid attends to the window of cells nearest to it.

    A_ij = softmax_j(q_i . k_j / sqrt(H) + table[j - i]) over the window of i,    1 to 3 axes
    per axis: `window` cells of the query's dilation class (equal modulo `dilation`), centered on
    the query and shifted inward at the borders, so that each query has exactly prod(window) keys;
    runs of `stride` queries share the window of the one in their middle

Paper: Hassani et al., "Neighborhood Attention Transformer", 2022, arXiv:2204.07143; Hassani and
Shi, "Dilated Neighborhood Attention Transformer", 2022, arXiv:2209.15001; Hassani, Hwu and Shi,
"Faster Neighborhood Attention", 2024, arXiv:2403.04690; Hassani et al., "Generalized Neighborhood
Attention", 2025, arXiv:2504.16922; Liu et al., "Regional Attention for Shadow Removal", 2024,
arXiv:2411.14201 (window 11, dilation 2, a table, in a network that gets the mask as a channel).
Limits: a window as large as the grid is softmax attention; dilation g is undilated attention on
each interleaved sub-grid; stride = window is attention inside separate blocks.
"""

from collections.abc import Sequence

import numpy as np

from attnjax.core import masks, mods
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op, Sizes, by_sizes, grid, square_grid
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, TokenK, TokenV, V


def neighborhood_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    shape: Sequence[int],
    window: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
    table: Float[Array, "N ..."] | None = None,
    impl: Impl = None,
) -> Out:
    """Softmax attention on a grid given as a row-major sequence, T = S = prod(shape).

    `window`, `stride`, `dilation` and `causal` are one value for all axes or one each. `table`, of
    shape (N, 2 window - 1 for each axis), is the learned bias of relative places in steps of the
    dilation, index 0 the most negative; with it a bias for each pair is formed, O(T^2) memory.
    """
    near = masks.neighborhood(shape, window, stride, dilation, causal)
    if table is None:
        return attend(q, k, v, mask=near, impl=impl)
    axes = len(shape)
    reach = np.broadcast_to(window, axes) - 1  # in steps of the dilation
    expected = (q.shape[2], *(2 * reach + 1).tolist())
    if table.shape != expected:
        raise ValueError(f"table: shape {table.shape}; expected {expected}")
    entries = _entries(shape, reach, np.broadcast_to(dilation, axes))
    bias = mods.pair_bias(table[:, *entries][None])
    return attend(q, k, v, mods=(bias,), mask=near, impl=impl)


def _entries(shape: Sequence[int], reach: np.ndarray, dilation: np.ndarray) -> np.ndarray:
    """The table's index for each axis and pair, (axes,T,T); pairs beyond the window are masked."""
    cells = np.indices(shape).reshape(len(shape), -1)
    steps = (cells[:, None, :] - cells[:, :, None]) // dilation[:, None, None]
    reach = reach[:, None, None]
    return np.clip(steps, -reach, reach) + reach


def _window(z: Sizes) -> tuple[int, ...]:
    return tuple(min(3, n) for n in grid(z["T"]))


def _blocks(q: Q, k: K, v: V, shape: tuple[int, int], window: tuple[int, int]) -> Out:
    """Attention inside blocks of 2 x 3 cells."""
    cells = np.indices(shape).reshape(2, -1) // np.array([[2], [3]])
    together = masks.array((cells[:, :, None] == cells[:, None, :]).all(0))
    return multi_head_attention(q, k, v, mask=together)


OPS = (
    Op(
        neighborhood_attention,
        papers=(240, 212, 1, 56, 122),
        reads="all",
        draw={"shape": square_grid, "window": by_sizes(_window)},
        sizes={"T": 24, "S": 24},
        limits=(
            Limit(
                "a window as large as the grid is softmax attention",
                {"window": square_grid},
                multi_head_attention,
            ),
            Limit(
                "stride = window is attention inside separate blocks",
                {"window": (2, 3), "stride": (2, 3)},
                _blocks,
            ),
        ),
    ),
)
