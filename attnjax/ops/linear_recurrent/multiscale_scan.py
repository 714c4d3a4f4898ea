"""Multi-scale scan of an image: one of four selective scans at full resolution, three at less.

    fine = scan_1(silu(conv_1(x)), by rows)
    y    = scan_2(by rows from the end, then by columns, then by columns from the end)
           of silu(conv_2(x)), a depthwise convolution with stride `rate`: the three routes one
           after the other are one sequence, and y is the sum of what it reads at a cell
    out  = excite(norm(fine) + up(norm(y))) * silu(z)

with up bilinear, excite(u) = u * sigmoid(relu(mean of u over the cells . W_1) W_2), and a norm of
each token before the routes are summed.  Of L cells, L + 3 L / rate^2 are scanned instead of 4 L.

Paper: Shi, Dong and Xu, "Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model",
2024, arXiv:2405.14174, section 3.
Limits: z = 0 gives zero.
Differs: the projections that x, z come from and out goes to belong to a layer.  W_dt of a scan is
one matrix, which the released code writes as a product of two.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import gelu, relu, sigmoid, silu, softplus

from attnjax.core.numerics import Affine, aligned, layer_norm, matmul, wide
from attnjax.core.scan.convolution import depthwise
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.selective_ssm import Tokens, selective_ssm
from attnjax.typing import Array, Float

Image = Float[Array, "B T columns W"]


class Order(NamedTuple):
    """An order of the cells of an image."""

    by_columns: bool
    from_the_end: bool


ORDERS = (Order(False, False), Order(False, True), Order(True, False), Order(True, True))


class Route(NamedTuple):
    """Learned, of one scan."""

    dt: Annotated[Affine, "W W"]
    b: Float[Array, "W M"]
    c: Float[Array, "W M"]
    log_a: Float[Array, "W M"]
    skip: Float[Array, " W"]


class Scale(NamedTuple):
    """Of one resolution: its convolution, released as 3 x 3 and 7 x 7 (coarse), and its scan."""

    kernel: Float[Array, "k k W"]
    bias: Float[Array, " W"]
    route: Route


class MultiscaleWeights(NamedTuple):
    """Both resolutions, the scale and shift of their norm, and the maps of the excitation."""

    fine: Scale
    coarse: Scale
    norm_scale: Float[Array, " W"]
    norm_shift: Float[Array, " W"]
    squeeze: Float[Array, "W E"]
    excite: Float[Array, "E W"]


@on_any_mesh
def multiscale_scan(x: Image, z: Image, weights: MultiscaleWeights, *, rate: int = 2) -> Image:
    """The first of ORDERS is scanned at full resolution, the others at `rate` times less."""
    w = jax.tree.map(wide, weights)

    def normed_scan(tokens: Tokens, route: Route) -> Tokens:
        y = layer_norm(scan(tokens, route), 1e-5)
        return y * aligned(w.norm_scale, y) + aligned(w.norm_shift, y)

    fine = silu(depthwise(x, w.fine.kernel, w.fine.bias))
    out = unflatten(normed_scan(flatten(fine, ORDERS[0]), w.fine.route), x.shape, ORDERS[0])

    low = silu(depthwise(x, w.coarse.kernel, w.coarse.bias, stride=rate))
    routes = jnp.concatenate([flatten(low, order) for order in ORDERS[1:]], axis=1)
    scanned = jnp.split(normed_scan(routes, w.coarse.route), 3, axis=1)
    images = (unflatten(y, low.shape, order) for y, order in zip(scanned, ORDERS[1:], strict=True))
    out += jax.image.resize(sum(images), x.shape, "linear", antialias=False)

    excited = sigmoid(matmul(relu(matmul(out.mean((1, 2)), w.squeeze)), w.excite))
    return (out * excited[:, None, None] * silu(wide(z))).astype(x.dtype)


def scan(tokens: Tokens, weights: Route) -> Tokens:
    """A selective state space model along one sequence."""
    w = jax.tree.map(wide, weights)
    rates = softplus(w.dt(tokens))
    read = selective_ssm(tokens, rates, -jnp.exp(w.log_a), matmul(tokens, w.b), matmul(tokens, w.c))
    return read + aligned(w.skip, tokens) * tokens


def flatten(x: Image, order: Order) -> Float[Array, "B cells W"]:
    """The cells of an image in an order."""
    if order.by_columns:
        x = x.swapaxes(1, 2)
    tokens = x.reshape(len(x), x.shape[1] * x.shape[2], x.shape[-1])
    return tokens[:, ::-1] if order.from_the_end else tokens


def unflatten(tokens: Float[Array, "B cells W"], shape: tuple[int, ...], order: Order) -> Image:
    """The image of a shape (B,rows,columns,W) whose cells are tokens in an order."""
    if order.from_the_end:
        tokens = tokens[:, ::-1]
    if not order.by_columns:
        return tokens.reshape(shape)
    B, rows, columns, W = shape
    return tokens.reshape(B, columns, rows, W).swapaxes(1, 2)


def conv_ffn(
    x: Image, up: Affine, kernel: Float[Array, "k k E"], bias: Float[Array, " E"], down: Affine
) -> Image:
    """The mixer of channels that follows: an MLP with a depthwise convolution inside, added."""
    hidden = up(x)
    hidden = hidden + depthwise(hidden, kernel, bias)
    return down(gelu(hidden, approximate=False)).astype(x.dtype)


def _zeros(x: Image) -> Image:
    return jnp.zeros_like(x)


OPS = (
    Op(
        multiscale_scan,
        papers=(358,),
        reads="all",
        sizes={"k": 3, "columns": 5, "E": 3},
        limits=(Limit("z = 0 gives zero", {"z": fill(0.0)}, _zeros),),
    ),
)
