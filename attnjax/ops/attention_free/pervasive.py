"""Pervasive attention: source and target meet in a grid, which convolutions read, and no softmax.

    h_0[t,s] = [source_s; x_t] W_0 + b_0
    u = (h_l + masked(h_l W_1 + b_1)) / sqrt(2)
    h_{l+1} = (u + relu(u W_2 + b_2) W_3 + b_3) / sqrt(2)
    a, b = mean_l(h_l) W_g + b_g,    out_t = max_s of a[t,s] * sigmoid(b[t,s])

`masked` is a depthwise convolution of k // 2 + 1 rows, that of t and those before it, and of k
columns around s.  How many channels take their maximum at a source token is the alignment.

    pervasive_dense_layer    of the paper's DenseNet: [h; masked(relu(norm(relu(norm(h)) W)))], with
                             every channel of a convolution reading all

Paper: Elbayad, Besacier and Verbeek, "Pervasive Attention: 2D Convolutional Neural Networks for
Sequence-to-Sequence Prediction", 2018, arXiv:1808.03867; code: elbayadm/attn2d.
Limits: none but the oracle; kernels of zeros know no order of the source.
Differs: the network is that of the released code, 14 blocks with k = 11, the paper's is the
DenseNet, 24 layers with k = 3, whose batch norms are scales and shifts here, as after training.
Source tokens that are not `seen` are no zeros in the released code once a layer has added a bias,
and its maximum counts them; here they are left out.  Dropout is the caller's.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu

from attnjax.core.numerics import Affine, einsum, wide
from attnjax.core.scan.convolution import depthwise
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Op, Slot
from attnjax.ops.attention_free.metaformer import Norm
from attnjax.typing import Array, Bool, Float

Target = Float[Array, "B T W"]
Source = Float[Array, "B S W"]
Grid = Float[Array, "B T columns W"]
Seen = Bool[Array, "B S"]

_HALF = 0.5**0.5  # keeps the variance of a sum of two


class Block(NamedTuple):
    """Learned; the last of the k // 2 + 1 rows of the kernel is that of the token itself."""

    reduce: Annotated[Affine, "W W"]
    kernel: Float[Array, "rows k W"]
    up: Annotated[Affine, "W E"]
    down: Annotated[Affine, "E W"]


class Ends(NamedTuple):
    """Learned: the map into the grid and that of the gated linear unit behind it."""

    into: Annotated[Affine, "2W W"]
    gated: Annotated[Affine, "W 2W"]


class Dense(NamedTuple):
    """Learned; G channels are added, E are inside."""

    norm: Norm
    reduce: Float[Array, "W E"]
    inner_norm: Annotated[Norm, "E"]
    kernel: Float[Array, "rows k E G"]


@on_any_mesh
def pervasive_attention(
    x: Target, source: Source, blocks: Sequence[Block], ends: Ends, *, seen: Seen | None = None
) -> Target:
    """The source as token t sees it, from the target tokens up to t; O(T S) memory.

    Source tokens that are not `seen` are padding; the result is zero where none is.
    """
    cells, seen = _cells(x, source, blocks, ends, seen)
    peak = jnp.where(seen, cells, -jnp.inf).max(2, initial=-jnp.inf)
    return jnp.where(seen.any(2), peak, 0.0).astype(x.dtype)


@on_any_mesh
def pervasive_alignment(
    x: Target, source: Source, blocks: Sequence[Block], ends: Ends, *, seen: Seen | None = None
) -> Float[Array, "B T S"]:
    """The share of the channels of `pervasive_attention` that come from each source token.

    A step function of everything: without gradient.
    """
    cells, seen = _cells(x, source, blocks, ends, seen)
    winners = jnp.where(seen, cells, -jnp.inf).argmax(2)
    share = jax.nn.one_hot(winners, cells.shape[2], axis=2, dtype=cells.dtype).mean(3)
    return jnp.where(seen[..., 0], share, 0.0).astype(x.dtype)


def _cells(
    x: Target, source: Source, blocks: Sequence[Block], ends: Ends, seen: Seen | None
) -> tuple[Grid, Bool[Array, "B 1 S 1"]]:
    (B, T, W), S = x.shape, source.shape[1]
    seen = jnp.ones((B, S), bool) if seen is None else seen
    seen = seen[:, None, :, None]
    row, column = (jnp.broadcast_to(y, (B, T, S, W)) for y in (x[:, :, None], source[:, None]))
    h = ends.into(jnp.concatenate([column, row], axis=-1))
    total = h
    for w in blocks:
        inside = jnp.where(seen, w.reduce(h), 0.0)
        u = _HALF * (h + _upwards(inside, w.kernel))
        h = _HALF * (u + w.down(relu(w.up(u))))
        total = total + h
    return jax.nn.glu(ends.gated(total / (len(blocks) + 1))), seen


def _upwards(x: Grid, kernel: Float[Array, "rows k W"]) -> Grid:
    """`depthwise`, but the last row of the kernel reads the cell's own."""
    above = len(kernel) // 2
    padded = jnp.pad(x, ((0, 0), (above, 0), (0, 0), (0, 0)))
    return depthwise(padded, kernel)[:, : x.shape[1]]


@on_any_mesh
def pervasive_dense_layer(x: Grid, weights: Dense) -> Float[Array, "B T columns V"]:
    """A layer of the paper's DenseNet, of V = W + G channels: all W, then G new ones."""
    w, (rows, k) = weights, weights.kernel.shape[:2]
    hidden = relu(
        w.inner_norm.rescaled(einsum("BTSW,WE->BTSE", relu(w.norm.rescaled(x)), w.reduce))
    )
    padded = jnp.pad(hidden, ((0, 0), (rows - 1, 0), ((k - 1) // 2, k // 2), (0, 0)))
    T, S = x.shape[1:3]
    taps = (
        einsum("BTSE,EG->BTSG", padded[:, r : r + T, c : c + S], w.kernel[r, c])
        for r, c in itertools.product(range(rows), range(k))
    )
    return jnp.concatenate([wide(x), sum(taps)], axis=-1).astype(x.dtype)


def _two_blocks(slot: Slot) -> tuple[Block, Block]:
    block = replace(slot, hint=Block)
    return block.tree(), block.tree()


_SIZES = {"S": 5, "2W": 16, "rows": 2, "k": 3, "E": 6}
_BLOCKS = {"blocks": Draw(_two_blocks)}

OPS = (
    Op(pervasive_attention, papers=(175,), reads="past", draw=_BLOCKS, sizes=_SIZES),
    Op(
        pervasive_dense_layer,
        papers=(175,),
        reads="past",
        sizes={"columns": 5, "rows": 2, "k": 3, "E": 6, "G": 3, "V": 11},
    ),
)
