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

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import gelu, silu, softplus

from attnjax.core.numerics import Affine, wide
from attnjax.core.scan.convolution import depthwise
from attnjax.op import Draw, Limit, Op, Slot, normal
from attnjax.ops.linear_recurrent.selective_ssm import Tokens, selective_ssm
from attnjax.typing import Array, Float

Image = Float[Array, "B T columns W"]
ROUTES = ((False, False), (True, False), (False, True), (True, True))  # (by columns, from the end)


class Route(NamedTuple):
    """Learned, of one scan."""

    dt: Annotated[Affine, "W W"]
    b: Float[Array, "W M"]
    c: Float[Array, "W M"]
    log_a: Float[Array, "W M"]
    skip: Float[Array, " W"]


class Routes(NamedTuple):
    """One for each of ROUTES."""

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
    """`routes` in the order of ROUTES; the first one is scanned at full resolution."""
    full = wide(x)
    low = depthwise(full, down, stride=rate)
    tokens = jnp.stack([flatten(low, way) for way in ROUTES[1:]])
    outs = jax.vmap(scan)(tokens, jax.tree.map(lambda *w: jnp.stack(w), *routes[1:]))
    coarse = sum(unflatten(o, low.shape, way) for o, way in zip(outs, ROUTES[1:], strict=True))
    up = jnp.repeat(jnp.repeat(coarse, rate, axis=1), rate, axis=2)[:, : x.shape[1], : x.shape[2]]
    out = unflatten(scan(flatten(full, ROUTES[0]), routes[0]), x.shape, ROUTES[0]) + up
    return (out * silu(gate(full))).astype(x.dtype)


def scan(tokens: Tokens, weights: Route) -> Tokens:
    """A selective state space model along one route."""
    w = jax.tree.map(wide, weights)
    product = lambda w: jnp.matmul(tokens, w, precision="highest")
    rates, a = softplus(w.dt(tokens)), -jnp.exp(w.log_a)
    return selective_ssm(tokens, rates, a, product(w.b), product(w.c)) + w.skip * tokens


def flatten(x: Image, route: tuple[bool, bool]) -> Tokens:
    columns, backward = route
    tokens = (x.swapaxes(1, 2) if columns else x).reshape(len(x), -1, x.shape[-1])
    return tokens[:, ::-1] if backward else tokens


def unflatten(tokens: Tokens, shape: tuple[int, ...], route: tuple[bool, bool]) -> Image:
    columns, backward = route
    tokens = tokens[:, ::-1] if backward else tokens
    B, rows, across, W = shape
    return tokens.reshape(B, across, rows, W).swapaxes(1, 2) if columns else tokens.reshape(shape)


def conv_ffn(x: Image, up: Affine, kernel: Float[Array, "k k E"], down: Affine) -> Image:
    """The mixer of channels that follows: an MLP with a depthwise convolution inside."""
    return down(gelu(depthwise(up(x), kernel))).astype(x.dtype)


def _plain(x: Image, routes: Routes, down: Array, gate: Affine) -> Image:
    each = lambda route, way: unflatten(scan(flatten(x, way), route), x.shape, way)
    return sum(map(each, routes, ROUTES)) * silu(gate(x))


def _same(slot: Slot) -> np.ndarray:
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
        limits=(Limit("rate 1: four scans", {"rate": 1, "down": Draw(_same)}, _plain),),
    ),
)
