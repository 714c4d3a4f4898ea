"""Windows of a grid with cosines for scores, and a bias that a small network makes of places.

    A_ij = softmax_j(exp(min(t_n, log 100)) cos(q_i, k_j) + table_n[place of j - place of i])
    table_n[d] = 16 sigmoid(W_2 relu(W_1 c(-d) + b_1))_n
    c(x) = sign(x) log_8(1 + 8 |x| / (trained - 1)) on each axis,    windows as in `grids`

A block is x += norm(attention(x)), x += norm(MLP(x)), its windows shifted by half their size in
every second one. The adapter of SOWA takes q, k and v by the frozen maps of a CLIP layer, without
their biases, or the values alone: `window_cosine_attention(v, v, v, ...)`. Its output goes through
the frozen output map, and at each level through that to the space of texts, where it is compared by
cosines with prompts; levels are added.

Paper: Hu and Zhang, "SOWA: Adapting Hierarchical Frozen Window Self-Attention to Visual-Language
Models for Better Anomaly Detection", 2024, arXiv:2407.03634, of the attention of Liu et al., "Swin
Transformer V2: Scaling Up Capacity and Resolution", 2021, arXiv:2111.09883, section 3.
Limits: one window without a table is softmax attention of unit queries and keys.
Differs: cells that a shift brings together do not meet, where the code adds -100 to their scores.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import features
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op, normal, square_grid
from attnjax.ops.local_structured.grids import PerAxis, PlaceNet, boxes, per_axis
from attnjax.typing import Array, Float, Out, PerHead, Q, TokenK, TokenV


@of_whole_text
@on_any_mesh
def window_cosine_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_scale: PerHead,
    table: Float[Array, "N ..."],
    *,
    shape: Sequence[int],
    shift: PerAxis = 0,
    impl: Impl = None,
) -> Out:
    """Attention in windows of a grid, T = S = prod(shape) cells in row-major order.

    log_scale   log 10 to begin with; above log 100 it counts as that, without gradient
    table       (N, 2 window - 1 for each axis), such as `continuous_table` gives: its shape tells
                the window
    shift       where the first window begins, one number for all axes or one each
    """
    window = [(n + 1) // 2 for n in table.shape[1:]]
    cut = boxes(shape, window, shift=shift)
    scale = jnp.exp(jnp.minimum(wide(log_scale), math.log(100.0)))[:, None]
    q, k = features.cosine(wide(q)).astype(q.dtype), features.cosine(wide(k)).astype(k.dtype)
    return cut.attend(q, k, v, mods=(cut.bias(table),), scale=scale, impl=impl)


def continuous_table(
    net: PlaceNet, window: Sequence[int], trained: PerAxis | None = None
) -> Float[Array, "N ..."]:
    """The table of a window, wide; `trained` is the window with which the network was trained."""
    extents = window if trained is None else per_axis("trained", trained, len(window))
    steps = np.meshgrid(*(np.arange(n - 1, -n, -1) for n in window), indexing="ij")
    return jnp.moveaxis(16 * jax.nn.sigmoid(net(np.stack(steps, -1), extents)), -1, 0)


def _units(q: Q, k: TokenK, v: TokenV, log_scale: PerHead) -> Out:
    q, k = features.cosine(q), features.cosine(k)
    return attend(q, k, v, scale=jnp.minimum(jnp.exp(log_scale), 100.0)[:, None])


OPS = (
    Op(
        window_cosine_attention,
        papers=(155,),
        reads="all",
        sizes={"T": 15, "S": 15},
        draw={
            "log_scale": normal(1.0, 2.0),
            "table": Draw(lambda slot: slot.normal("N 3 5")),
            "shape": square_grid,
            "shift": (0, 1),
        },
        limits=(
            Limit(
                "one window without a table is softmax attention of unit vectors",
                {"table": Draw(lambda slot: np.zeros((4, 5, 9))), "shape": (3, 5), "shift": 0},
                _units,
            ),
        ),
    ),
)
