"""Sinusoidal positions of rows and columns, weighed by what the picture looks like (A2DPE).

    g = mean of the cells,    [alpha; beta] = sigmoid(relu(g W_1 + b_1) W_2 + b_2)
    out_rc = x_rc + alpha * code(r) + beta * code(c)
    code(t) = [sin(w_0 t), .., cos(w_0 t), ..],    w_m = 10000^(-m / (W/2 - 1)),  m < W/2

Self-attention over all cells follows, so that text may run in any direction. So does, in place of a
feed-forward layer, relu(W' relu(depthwise convolution of relu(W x + b)) + b').

Paper: Lee et al., "On Recognizing Texts of Arbitrary Shapes with 2D Self-Attention", 2019,
arXiv:1910.04396, section 3.2; code: clovaai/SATRN.
Limits: W_2 = 0 and b_2 large is the sum of both codes.
Differs: batch normalizations of the code are in the weights and biases, as they are after training.
"""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import Affine, wide
from attnjax.core.scan.convolution import depthwise
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted, square_grid
from attnjax.typing import Array, Float


class AxisGates(NamedTuple):
    """The maps from the mean cell to M numbers, and from these to gates of rows and columns."""

    inner: Annotated[Affine, "W M"]
    rows: Annotated[Affine, "M W"]
    columns: Annotated[Affine, "M W"]


@on_any_mesh
def adaptive_grid_positions(
    x: Float[Array, "B T W"], weights: AxisGates, *, shape: Sequence[int]
) -> Float[Array, "B T W"]:
    """x with codes of its places added; T cells of a map (rows, columns) in row-major order.

    Raises ValueError where the cells are not T or W is odd.
    """
    T, W = x.shape[1:]
    if len(shape) != 2 or math.prod(shape) != T or W % 2:
        raise ValueError(f"shape: {tuple(shape)}; expected T = {T} cells, and W = {W} even")
    inner = jax.nn.relu(weights.inner(wide(x).mean(1)))
    r, c = np.divmod(np.arange(T), shape[1])
    terms = (
        jax.nn.sigmoid(gate(inner))[:, None] * jnp.asarray(axis_code(at, W)[None], inner.dtype)
        for gate, at in ((weights.rows, r), (weights.columns, c))
    )
    return (wide(x) + sum(terms)).astype(x.dtype)


class Locality(NamedTuple):
    """Maps W -> E -> W with a kernel (X,X,E) between."""

    inner: Annotated[Affine, "W E"]
    kernel: Float[Array, "X X E"]
    kernel_bias: Float[Array, " E"]
    outer: Annotated[Affine, "E W"]


@on_any_mesh
def locality_feed_forward(
    x: Float[Array, "B T W"], weights: Locality, *, shape: Sequence[int]
) -> Float[Array, "B T W"]:
    """A feed-forward layer of the cells of a map, each of which hears its neighbors."""
    if len(shape) != 2 or math.prod(shape) != x.shape[1]:
        raise ValueError(f"shape: {tuple(shape)}; expected T = {x.shape[1]} cells")
    w = weights
    inner = jax.nn.relu(w.inner(x))
    image = inner.reshape(len(x), *shape, inner.shape[-1])
    near = jax.nn.relu(depthwise(image, w.kernel, w.kernel_bias)).reshape(inner.shape)
    return jax.nn.relu(w.outer(near)).astype(x.dtype)


def axis_code(at: np.ndarray, width: int) -> np.ndarray:
    """Sines, then cosines, of places (T,) at width/2 rates from 1 to 1/10000, (T,width)."""
    half = width // 2
    rates = 10000.0 ** (-np.arange(half) / max(half - 1, 1))
    angles = at[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def _open(weights: AxisGates) -> AxisGates:
    gate = lambda x: Affine(0 * x.w, 0 * x.b + 90.0)
    return AxisGates(weights.inner, gate(weights.rows), gate(weights.columns))


OPS = (
    Op(
        adaptive_grid_positions,
        papers=(173,),
        reads="all",
        draw={"shape": square_grid},
        limits=(
            Limit(
                "open gates add both codes",
                {"weights": adjusted(_open)},
                lambda x, shape: (
                    x
                    + axis_code(np.arange(x.shape[1]) // shape[1], x.shape[2])
                    + axis_code(np.arange(x.shape[1]) % shape[1], x.shape[2])
                ),
            ),
        ),
    ),
    Op(
        locality_feed_forward,
        papers=(173,),
        reads="all",
        sizes={"E": 5, "X": 3},
        draw={"shape": square_grid},
    ),
)
