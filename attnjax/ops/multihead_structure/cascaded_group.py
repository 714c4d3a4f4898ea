"""Cascaded group attention: each head gets its own channels, and what the head before it read.

    x = [x_1; ..; x_N] along the channels, P = W / N each;    f_1 = x_1,  f_n = x_n + o_{n-1}
    q, k, v = f_n W + b of head n  (widths R, R, P),    q <- depthwise convolution of q
    o_n = softmax(q k^T / sqrt(R) + table_n[|dy|, |dx|]) v,    out = relu([o_1; ..; o_N]) W_o + b_o

in windows of Z x Z cells; those over the edge are filled with zeros, which take part as keys. A map
that fits into one window is not filled.

Paper: Liu et al., "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group
Attention", 2023, arXiv:2305.07027, section 3.2; code: microsoft/Cream, as in timm's
`efficientvit_msra`.
Limits: one head with a table of zeros and a kernel of one is single-head attention.
Differs: the code's maps have a batch normalization each in place of a bias; weights and biases here
are both as they are after training. Kernels of several sizes (7, 5, 3, 3) are filled with zeros.
"""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import mods
from attnjax.core.numerics import Affine, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.scan.convolution import depthwise
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot, square_grid
from attnjax.typing import Array, Float


class CascadedHeads(NamedTuple):
    """Weights of N heads, and of the output; X is the width of the convolution, Z of a window."""

    q: Float[Array, "N P R"]
    q_bias: Float[Array, "N R"]
    k: Float[Array, "N P R"]
    k_bias: Float[Array, "N R"]
    v: Float[Array, "N P P"]
    v_bias: Float[Array, "N P"]
    kernel: Float[Array, "N X X R"]
    kernel_bias: Float[Array, "N R"]
    table: Float[Array, "N Z Z"]
    out: Annotated[Affine, "W W"]


@of_whole_text
@on_any_mesh
def cascaded_group_attention(
    x: Float[Array, "B T W"],
    weights: CascadedHeads,
    *,
    shape: Sequence[int],
    impl: Impl = None,
) -> Float[Array, "B T W"]:
    """Attention in windows of a map of `shape` (rows, columns), its cells in row-major order.

    Heads run one after the other. Raises ValueError where the cells are not T or W is not N P.
    """
    N, P, _ = weights.q.shape
    if math.prod(shape) != x.shape[1] or len(shape) != 2 or N * P != x.shape[2]:
        raise ValueError(
            f"shape: {tuple(shape)}, with N, P = {N}, {P}; expected (rows, columns) of "
            f"T = {x.shape[1]} cells and N P = {x.shape[2]}"
        )
    Z = weights.table.shape[-1]
    box = (Z, Z) if max(shape) > Z else (shape[0], shape[1])
    slices = jnp.split(_windows(wide(x), shape, box), N, axis=-1)
    read, before = [], jnp.zeros_like(slices[0])
    for n, mine in enumerate(slices):
        before = _head(mine + before, weights, n, box, impl)
        read.append(before)
    out = weights.out(jax.nn.relu(jnp.concatenate(read, axis=-1)))
    return _together(out, shape, box, len(x)).astype(x.dtype)


def _head(f: Array, w: CascadedHeads, n: int, box: tuple[int, int], impl: Impl) -> Array:
    """What head n reads in each window: (B,cells,P) of windows to the same."""
    of_head = ((w.q, w.q_bias), (w.k, w.k_bias), (w.v, w.v_bias))
    q, k, v = (Affine(weight[n], bias[n])(f) for weight, bias in of_head)
    image = q.reshape(len(q), *box, q.shape[-1])
    q = depthwise(image, w.kernel[n], w.kernel_bias[n]).reshape(q.shape)
    bias = mods.pair_bias(offset_bias(w.table[n], *box)[None, None])
    out = attend(q[:, :, None], k[:, :, None], v[:, :, None], mods=(bias,), impl=impl)
    return out[:, :, 0]


def offset_bias(table: Float[Array, "Z Z"], rows: int, columns: int) -> Float[Array, "S S"]:
    """table[|dy|, |dx|] of every two cells of a window: small, for windows are."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    return table[abs(y[:, None] - y), abs(x[:, None] - x)]


def _windows(x: Array, shape: Sequence[int], box: tuple[int, int]) -> Array:
    """(B,T,W) -> (B * windows, cells of a window, W)."""
    (rows, columns), (h, w), (B, _, W) = shape, box, x.shape
    image = x.reshape(B, rows, columns, W)
    image = jnp.pad(image, ((0, 0), (0, -rows % h), (0, -columns % w), (0, 0)))
    cut = image.reshape(B, image.shape[1] // h, h, image.shape[2] // w, w, W)
    return jnp.swapaxes(cut, 2, 3).reshape(-1, h * w, W)


def _together(x: Array, shape: Sequence[int], box: tuple[int, int], B: int) -> Array:
    """The inverse of `_windows`, without what was filled."""
    (rows, columns), (h, w), W = shape, box, x.shape[-1]
    cut = x.reshape(B, -(-rows // h), -(-columns // w), h, w, W)
    image = jnp.swapaxes(cut, 2, 3).reshape(B, -(-rows // h) * h, -(-columns // w) * w, W)
    return image[:, :rows, :columns].reshape(B, rows * columns, W)


def _plain(slot: Slot) -> CascadedHeads:
    """One head as wide as the model, no biases of positions, a kernel of one."""
    z = {**slot.sizes, "N": 1, "P": slot.sizes["W"], "X": 1, "Z": 9}
    w = Slot(slot.rng, z, slot.hint).tree()
    return w._replace(
        table=0 * w.table,
        kernel=np.ones((1, 1, 1, z["R"])),
        kernel_bias=np.zeros((1, z["R"])),
    )


def _single_head(x: Array, weights: CascadedHeads) -> Array:
    w = weights
    q, k, v = x @ w.q[0] + w.q_bias[0], x @ w.k[0] + w.k_bias[0], x @ w.v[0] + w.v_bias[0]
    return w.out(jax.nn.relu(attend(*(y[:, :, None] for y in (q, k, v)))[:, :, 0]))


OPS = (
    Op(
        cascaded_group_attention,
        papers=(360,),
        reads="all",
        sizes={"N": 2, "P": 4, "R": 3, "X": 3, "Z": 2},
        draw={"shape": square_grid},
        limits=(
            Limit(
                "one head without positions is single-head attention",
                {"weights": Draw(_plain)},
                _single_head,
            ),
        ),
    ),
)
