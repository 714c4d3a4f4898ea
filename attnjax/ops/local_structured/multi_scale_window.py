"""Multi-scale windows: heads and layers see pasts of different lengths.

    A_ij = softmax_j(q_i . k_j / sqrt(H)),    i - w_n < j <= i for head n

From a base w, a layer has w / 4, w / 2, w or 2 w by the quarter of the depth it lies in, and its
heads a quarter, a half, once and twice that, by quarters, too: 225/256 of the keys of windows w.

Paper: Xu et al., "MSWA: Refining Local Attention with Multi-Scale Window Attention", 2025,
arXiv:2501.01039.
Limits: equal windows are a sliding window.
Differs: in the code for fine-tuning, AMD-AIG-AIMA/AMD_MSWA, a window w ends at distance w, which is
w + 1 here; its heads have 2 w, w, w / 2 and w / 2, the largest first, and so have its layers from
the last one down: `windows` takes any.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op
from attnjax.typing import K, Out, Q, V


def multi_scale_window_attention(
    q: Q, k: K, v: V, *, windows: Sequence[int], impl: Impl = None
) -> Out:
    """Head n sees windows[n] tokens, itself the last; `scaled_windows` gives those of a layer.

    O(T max(windows)) time. Raises ValueError for other than N windows of at least one token.
    """
    N = q.shape[2]
    if len(windows) != N or min(windows) < 1:
        raise ValueError(f"windows: {tuple(windows)}; expected N = {N} lengths of at least 1")
    radius = max(windows) - 1
    back = np.arange(radius, -radius - 1, -1)  # from key to query
    hidden = np.where(back < np.array(windows)[:, None], 0.0, -np.inf)
    within = mods.relative_bias(jnp.asarray(hidden, wide(q).dtype))
    return attend(q, k, v, mods=(within,), mask=masks.window(radius), impl=impl)


def scaled_windows(base: int, layer: int, layers: int, heads: int) -> tuple[int, ...]:
    """The window of each head of a layer, at least 1."""
    quarter = lambda i, n: 4 * i // n
    of_layer = quarter(layer, layers) - 2
    scales = [2.0 ** (of_layer + quarter(n, heads) - 2) for n in range(heads)]
    return tuple(max(int(base * scale), 1) for scale in scales)


def _sliding(q: Q, k: K, v: V) -> Out:
    return attend(q, k, v, mask=masks.window(2))


OPS = (
    Op(
        multi_scale_window_attention,
        papers=(232,),
        reads="past",
        draw={"windows": (1, 2, 4, 8)},
        limits=(Limit("equal windows slide", {"windows": (3, 3, 3, 3)}, _sliding),),
    ),
)
