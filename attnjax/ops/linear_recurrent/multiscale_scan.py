"""Multi-scale scan of an image: one of four selective scans at full resolution, three at less.

    routes: by rows, by columns, and both from the end; each a selective state space model
    out = (scan_1(x) + up(scan_2(low) + scan_3(low) + scan_4(low))) * silu(x W_g)
    low = depthwise convolution of x with stride `rate`,    up = nearest

Of L positions, L + 3 L / rate^2 are scanned instead of 4 L.

Paper: Shi, Dong and Xu, "Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model",
2024, arXiv:2405.14174, section 3.
Limits: rate 1 and a convolution that is the identity make the plain sum of four scans.
Differs: projections around the scans belong to a layer; the paper does not name its upsampling.
"""

import functools
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import gelu, silu, softplus

from attnjax.core.numerics import Affine, matmul, wide
from attnjax.core.scan.convolution import depthwise
from attnjax.op import Draw, Limit, Op, Slot, normal
from attnjax.ops.linear_recurrent.selective_ssm import Tokens, selective_ssm
from attnjax.typing import Array, Float

Image = Float[Array, "B T columns W"]


class Order(NamedTuple):
    """An order of the cells of an image."""

    by_columns: bool
    from_the_end: bool


ORDERS = (Order(False, False), Order(True, False), Order(False, True), Order(True, True))


class Route(NamedTuple):
    """Learned, of one scan."""

    dt: Annotated[Affine, "W W"]
    b: Float[Array, "W M"]
    c: Float[Array, "W M"]
    log_a: Float[Array, "W M"]
    skip: Float[Array, " W"]


class Routes(NamedTuple):
    """One for each of ORDERS."""

    by_rows: Route
    by_columns: Route
    by_rows_from_the_end: Route
    by_columns_from_the_end: Route


def multiscale_scan(
    x: Image,
    routes: Routes,
    down: Float[Array, "k k W"],
    gate: Annotated[Affine, "W W"],
    *,
    rate: int = 2,
) -> Image:
    """`routes` in the order of ORDERS; the first one is scanned at full resolution."""
    _, rows, columns, _ = x.shape
    full = wide(x)
    fine = unflatten(scan(flatten(full, ORDERS[0]), routes[0]), x.shape, ORDERS[0])
    low = depthwise(full, down, stride=rate)
    coarse = _sum_of_scans(low, routes[1:], ORDERS[1:])
    up = jnp.repeat(jnp.repeat(coarse, rate, axis=1), rate, axis=2)[:, :rows, :columns]
    return ((fine + up) * silu(gate(full))).astype(x.dtype)


def _sum_of_scans(x: Image, routes: tuple[Route, ...], orders: tuple[Order, ...]) -> Image:
    """The sum over routes, all scanned at the same time."""
    tokens = jnp.stack([flatten(x, order) for order in orders])
    stacked = jax.tree.map(lambda *w: jnp.stack(w), *routes)
    outs = jax.vmap(scan)(tokens, stacked)
    images = [unflatten(out, x.shape, order) for out, order in zip(outs, orders, strict=True)]
    return functools.reduce(jnp.add, images)


def scan(tokens: Tokens, weights: Route) -> Tokens:
    """A selective state space model along one route."""
    w = jax.tree.map(wide, weights)
    rates = softplus(w.dt(tokens))
    read = selective_ssm(tokens, rates, -jnp.exp(w.log_a), matmul(tokens, w.b), matmul(tokens, w.c))
    return read + w.skip * tokens


def flatten(x: Image, order: Order) -> Tokens:
    """The cells of an image in an order."""
    if order.by_columns:
        x = x.swapaxes(1, 2)
    tokens = x.reshape(len(x), -1, x.shape[-1])
    return tokens[:, ::-1] if order.from_the_end else tokens


def unflatten(tokens: Tokens, shape: tuple[int, ...], order: Order) -> Image:
    """The image of a shape (B,rows,columns,W) whose cells are tokens in an order."""
    if order.from_the_end:
        tokens = tokens[:, ::-1]
    if not order.by_columns:
        return tokens.reshape(shape)
    B, rows, columns, W = shape
    return tokens.reshape(B, columns, rows, W).swapaxes(1, 2)


def conv_ffn(x: Image, up: Affine, kernel: Float[Array, "k k E"], down: Affine) -> Image:
    """The mixer of channels that follows: an MLP with a depthwise convolution inside."""
    return down(gelu(depthwise(up(x), kernel))).astype(x.dtype)


def _four_scans(x: Image, routes: Routes, gate: Affine) -> Image:
    total = jnp.zeros_like(x)
    for route, order in zip(routes, ORDERS, strict=True):
        total += unflatten(scan(flatten(x, order), route), x.shape, order)
    return total * silu(gate(x))


def _identity_kernel(slot: Slot) -> np.ndarray:
    kernel = np.zeros(slot.shape)
    kernel[1, 1] = 1.0
    return kernel


OPS = (
    Op(
        multiscale_scan,
        papers=(358,),
        reads="all",
        draw={"down": normal(0.3)},
        sizes={"k": 3, "columns": 5},
        limits=(
            Limit("rate 1: four scans", {"rate": 1, "down": Draw(_identity_kernel)}, _four_scans),
        ),
    ),
)
