"""Context-mixing dynamic kernels: what a cell sees of the whole map makes its convolution's kernel.

    A_ip = q_i . k_p / sqrt(2 H),    p the P = 7 x 7 parts of the context, k_p the key of their mean
    w_ij = softmax_j((A_i W + b)_{slot of j} + table[place of j - place of i])
    out_i = sum_j w_ij v_j,    j the X x X cells around i, shifted inward at the borders

W (P,X,X) and b are shared by cells and heads. A block has two sizes, X = 5 and one of 7 to 17,
which share q and k, of half as many channels as the map has. Each has half the channels of v; q, k
and v come from maps with a batch norm. Both results, one behind the other, go through one more;
plus a dilated depthwise convolution of the input, times gates of channels (SE), times silu of a map
of the input, through an output map.

Paper: Lou and Yu, "OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing
Dynamic Kernels", 2025, arXiv:2502.20087, section 3.3; code: LMMMEng/OverLoCK, `ContMixBlock`.
Limits: W = b = table = 0 is the mean over the window.
Differs: maps have to be as large as the kernel; the code enlarges smaller ones.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods
from attnjax.core.numerics import aligned, einsum, repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op, Sizes, Slot, grid, square_grid
from attnjax.ops.local_structured.neighborhood import neighborhood_attention
from attnjax.typing import Array, Float, Out, Q, TokenV


@of_whole_text
@on_any_mesh
def contmix(
    q: Q,
    k: Float[Array, "B P K H"],
    v: TokenV,
    weight: Float[Array, "P X X"],
    bias: Float[Array, "X X"],
    table: Float[Array, "N Y Y"],
    *,
    shape: Sequence[int],
    impl: Impl = None,
) -> Out:
    """Dynamic convolution of a map (rows, columns), T cells in row-major order.

    Keys of the P parts come from `adaptive_means` of the context; `table` has Y = 2 X - 1 places on
    each axis, index 0 the most negative of a key. Raises ValueError where shapes do not fit.
    """
    (B, T, N, H), X = q.shape, weight.shape[-1]
    if len(shape) != 2 or math.prod(shape) != T or table.shape[-1] != 2 * X - 1:
        raise ValueError(
            f"shape, table: {tuple(shape)}, {table.shape}; expected (rows, columns) of T = {T} "
            f"cells and (N, {2 * X - 1}, {2 * X - 1})"
        )
    near = masks.neighborhood(shape, X)
    affinity = einsum("BTNH,BPNH->BTNP", q, repeat_heads(k, q)) / math.sqrt(2 * H)
    logits = einsum("BTNP,PX->BTNX", affinity, weight.reshape(len(weight), X * X))
    cells, keys = _windows(shape, X)
    places = keys - cells[:, None] + X - 1
    logits = logits + aligned(bias.reshape(X * X), logits)
    logits += jnp.moveaxis(wide(table)[:, places[..., 0], places[..., 1]], 0, 1)[None]
    nothing = jnp.zeros((B, T, N, 1), q.dtype)
    by_offset = mods.query_relative(_by_offset(logits, keys, shape[1]))
    values = jnp.zeros((B, T, v.shape[2], 1), q.dtype)
    return attend(nothing, values, v, mods=(by_offset,), mask=near, impl=impl)


def _windows(shape: Sequence[int], X: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the cells (T,2), and of the keys in their windows (T,X*X,2)."""
    cells = np.indices(shape).reshape(2, -1).T
    first = np.clip(cells - X // 2, 0, np.array(shape) - X)
    return cells, first[:, None] + np.indices((X, X)).reshape(2, -1).T


def _by_offset(logits: Array, keys: np.ndarray, columns: int) -> Array:
    """(B,T,N,X*X) by slots -> by what a key's number is more than the query's, (B,T,N,R)."""
    T, slots = keys.shape[:2]
    offsets = keys @ np.array([columns, 1]) - np.arange(T)[:, None]
    radius = abs(offsets).max()
    slot = np.full((T, 2 * radius + 1), slots)
    np.put_along_axis(slot, offsets + radius, np.arange(slots)[None], axis=1)
    padded = jnp.pad(logits, ((0, 0), (0, 0), (0, 0), (0, 1)))
    return jnp.take_along_axis(padded, jnp.asarray(slot)[None, :, None], axis=-1)


def _size(z: Sizes) -> int:
    return min(3, *grid(z["T"]))


def _draw(shape: str) -> Draw:
    def make(slot: Slot) -> np.ndarray:
        X = _size(slot.sizes)
        return Slot(slot.rng, {**slot.sizes, "X": X, "Y": 2 * X - 1}, slot.hint).normal(shape)

    return Draw(make)


def _zeros(shape: str) -> Draw:
    return Draw(lambda slot: 0 * _draw(shape).make(slot))


def _box(q: Q, v: TokenV, weight: Array, shape: Sequence[int]) -> Out:
    k = jnp.zeros((*v.shape[:3], q.shape[3]), q.dtype)
    return neighborhood_attention(0 * q, k, v, shape=shape, window=weight.shape[-1])


_LEARNED = {"weight": "P X X", "bias": "X X", "table": "N Y Y"}
OPS = (
    Op(
        contmix,
        papers=(389,),
        reads="all",
        sizes={"T": 20, "P": 4},
        draw={name: _draw(shape) for name, shape in _LEARNED.items()} | {"shape": square_grid},
        limits=(
            Limit(
                "zeros are the mean over the window",
                {name: _zeros(shape) for name, shape in _LEARNED.items()},
                _box,
            ),
        ),
    ),
)
