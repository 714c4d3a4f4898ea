"""Global sub-sampled attention: every cell of a map attends to one summary of each block of cells.

    s_b = norm(sum_c x_c W_c + b_c),   c the places of block b of X x X cells: a strided convolution
    out = softmax(q k^T / sqrt(H)) v W_o + b_o,   q from the cells,  k and v from the summaries

Twins-SVT alternates: attention in 7 x 7 windows first, which is `window_attention`, then this, with
X = 8, 4, 2, 1 in its four stages. Behind the first block of a stage comes x plus its depthwise
convolution 3 x 3, for the positions. Twins-PCPVT has this in every block.

Paper: Chu et al., "Twins: Revisiting the Design of Spatial Attention in Vision Transformers", 2021,
arXiv:2104.13840, sections 3.1 and 3.2; code: Meituan-AutoML/Twins.
Limits: without summaries, each cell its own, it is multi-head attention.
Differs: blocks over the edge are filled with zeros, where the code leaves them out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from attnjax.core.numerics import aligned, einsum, layer_norm, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot, square_grid
from attnjax.ops.local_structured.grids import boxes
from attnjax.typing import Array, Float

Cells = Float[Array, "B T W"]


class Summary(NamedTuple):
    """A convolution whose stride is its width, and the layer norm behind it."""

    kernel: Float[Array, "X X W W"]
    bias: Float[Array, " W"]
    gain: Float[Array, " W"]
    shift: Float[Array, " W"]


class Subsampled(NamedTuple):
    """Projections; summary None where a cell is its own.

    A bias of keys cancels in the softmax, and one of values, times `out`, is part of `out_bias`.
    """

    q: Float[Array, "W N H"]
    q_bias: Float[Array, "N H"]
    k: Float[Array, "W N H"]
    v: Float[Array, "W N H"]
    out: Float[Array, "N H W"]
    out_bias: Float[Array, " W"]
    summary: Summary | None


_EPS = 1e-5


@of_whole_text
@on_any_mesh
def subsampled_attention(
    x: Cells, weights: Subsampled, *, shape: Sequence[int], impl: Impl = None
) -> Cells:
    """Attention of the cells of a map (rows, columns) to summaries; cells in row-major order."""
    w, keys = weights, wide(x)
    if w.summary is not None:
        keys = summaries(x, w.summary, shape)
    q = einsum("BTW,WNH->BTNH", x, w.q)
    q = q + aligned(w.q_bias, q)
    k, v = (einsum("BSW,WNH->BSNH", keys, m) for m in (w.k, w.v))
    out = einsum("BTNH,NHW->BTW", attend(q, k, v, impl=impl), w.out)
    return (out + aligned(w.out_bias, out)).astype(x.dtype)


def summaries(x: Cells, weights: Summary, shape: Sequence[int]) -> Float[Array, "B S W"]:
    """One for each block of X x X cells, wide."""
    X, _, W, _ = weights.kernel.shape
    cut = boxes(shape, X)
    found = einsum("BCW,CWV->BV", cut.take(x), weights.kernel.reshape(X * X, W, W))
    found = layer_norm(found + aligned(weights.bias, found), _EPS)
    found = found * aligned(weights.gain, found) + aligned(weights.shift, found)
    return found.reshape(x.shape[0], len(cut.cells), W)


def _own(slot: Slot) -> Subsampled:
    return slot.tree()._replace(summary=None)


def _attention(x: Cells, weights: Subsampled) -> Array:
    w = weights
    q = jnp.einsum("BTW,WNH->BTNH", x, w.q) + w.q_bias
    k, v = (jnp.einsum("BTW,WNH->BTNH", x, m) for m in (w.k, w.v))
    return jnp.einsum("BTNH,NHW->BTW", attend(q, k, v), w.out) + w.out_bias


OPS = (
    Op(
        subsampled_attention,
        papers=(169,),
        reads="all",
        sizes={"X": 2},
        draw={"shape": square_grid},
        limits=(
            Limit(
                "each cell its own is multi-head attention",
                {"weights": Draw(_own)},
                _attention,
            ),
        ),
    ),
)
