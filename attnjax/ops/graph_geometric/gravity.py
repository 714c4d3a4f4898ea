"""GravNet by a radius: nodes add up what is near in a space that they learn, on the unit sphere.

    s_i = points_i / |points_i|,    f_j = x_j / sum |x_j|
    out_i = sum over the nearest j with |s_i - s_j| < r of exp(-g |s_i - s_j|^2 / r^2) f_j

without a normalizer: what is alone gets nothing.

Paper: Murnane, "Graph Structure from Point Clouds: Geometric Attention is All You Need", 2023,
arXiv:2307.16662; code: murnanedaniel/GeometricAttention.
Limits: r -> 0 leaves all nodes alone.
Differs: networks give points and, from out and x, the next x, each x with the mean of its channels
behind it. Of more neighbors than the limit released code takes any, here the nearest. A self loop,
f_i itself, is the caller's.
"""

import jax.numpy as jnp

from attnjax.core.features import cosine
from attnjax.core.numerics import divide, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.graph_geometric.edge_sampling import nearest, neighbors
from attnjax.typing import Array, Float

Tokens = Float[Array, "B T W"]


@on_any_mesh
def gravity_pool(
    x: Tokens,
    points: Float[Array, "B T R"],
    *,
    radius: float = 0.1,
    strength: float = 3.0,
    most: int = 16,
) -> Tokens:
    """Messages of at most `most` other nodes within `radius`, at most 2, by strength g.

    Which nodes are near has no gradient, how near they are has one.
    """
    s, f = cosine(wide(points)), wide(x)
    f = divide(f, jnp.sum(jnp.abs(f), axis=-1, keepdims=True))
    near = nearest(s, most + 1)[..., 1:]
    distance = jnp.sum(jnp.square(neighbors(s, near) - s[:, :, None]), axis=-1, keepdims=True)
    weight = jnp.exp(-strength * distance / radius**2)
    weight = jnp.where(distance < radius**2, weight, 0.0)
    return jnp.sum(weight * neighbors(f, near), axis=2).astype(x.dtype)


def _nothing(x: Tokens) -> Tokens:
    return jnp.zeros_like(x)


OPS = (
    Op(
        gravity_pool,
        papers=(112,),
        reads="all",
        draw={"radius": 1.5, "most": 5},
        exempt={"bfloat16": "points that are rounded may have other neighbors"},
        limits=(Limit("r -> 0 leaves all nodes alone", {"radius": 1e-3}, _nothing),),
    ),
)
