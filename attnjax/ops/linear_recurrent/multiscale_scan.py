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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import gelu, silu, softplus

from attnjax.core.numerics import Affine, wide
from attnjax.core.scan.convolution import depthwise
from attnjax.op import Limit, Variant, constant, normal
from attnjax.ops.linear_recurrent.selective_ssm import Tokens, selective_ssm
from attnjax.typing import Array, Float

Image = Float[Array, "B rows columns W"]
ROUTES = ((False, False), (True, False), (False, True), (True, True))  # (by columns, from the end)


class Route(NamedTuple):
    """Learned, of one scan."""

    dt: Affine
    b: Float[Array, "W M"]
    c: Float[Array, "W M"]
    log_a: Float[Array, "W M"]
    skip: Float[Array, " W"]


def multiscale_scan(
    x: Image, routes: tuple[Route, ...], down: Float[Array, "k k W"], gate: Affine, *, rate: int = 2
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


def _routes(key: Array, z: Any) -> tuple[Route, ...]:
    keys = iter(jax.random.split(key, 24))
    draw = lambda shape: normal(shape, 0.3)(next(keys), z)
    one = lambda: Route(Affine(draw("D D"), draw("D")), *map(draw, ("D M", "D M", "D M", "D")))
    return one(), one(), one(), one()


def _plain(x: Image, routes: tuple[Route, ...], down: Array, gate: Affine) -> Image:
    each = lambda route, way: unflatten(scan(flatten(x, way), route), x.shape, way)
    return sum(map(each, routes, ROUTES)) * silu(gate(x))


_gate = lambda key, z: Affine(normal("D D")(key, z), normal("D")(key, z))
_same = lambda key, z: jnp.zeros((3, 3, z.D)).at[1, 1].set(1.0)
VARIANT = Variant(
    multiscale_scan, (358,), "Shi, Dong and Xu, 2024, arXiv:2405.14174",
    inputs=dict.fromkeys("qkv")
    | {"x": normal("B T 5 D"), "routes": _routes, "down": normal("3 3 D", 0.3), "gate": _gate},
    limits=(Limit("rate 1: four scans", {"rate": constant(1), "down": _same}, _plain),),
    exempt={"grouped": "takes no q, k, v of several heads", "causal": "scans from both ends"},
)  # fmt: skip
