"""Edge sampling of point clouds: the points kept are those whose attention is uneven.

    global: A = softmax(q k^T / sqrt(H)) of all points,    score_j = sum_i A_ij
    local:  a_i = softmax over the K nearest j of q_i . (k_j - k_i) / sqrt(H),    score_i = std(a_i)
    out = the rows of A v, or of sum_j a_ij (v_j - v_i), of the points of largest scores, in order

with the standard deviation over the K weights themselves. Neighbors are the nearest in feature
space, each point its own first.

Paper: Wu, Zheng, Pfrommer and Beyerer, "Attention-based Point Cloud Edge Sampling", 2023,
arXiv:2302.14673; code: JunweiZheng93/APES.
Limits: with all points kept the rows are those of attention, ordered.
Differs: the maps to q, k and v, one head of 128 as released, belong to a layer. Upsampling is
attention of the points before to those kept, added to a map of theirs: multi_head_attention.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core.blocks.block_maps import block_mass
from attnjax.core.numerics import finite, matmul, wide
from attnjax.core.pairwise.attend import attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, by_sizes
from attnjax.typing import Array, Float, Int

Points = Float[Array, "B T H"]
Kept = Int[Array, "B _"]


@on_any_mesh
def global_edge_sampling(q: Points, k: Points, v: Points, *, keep: int) -> Float[Array, "B _ H"]:
    """Rows of attention of the `keep` points that all points look at most; all if there are fewer.

    The map of all pairs is not formed: O(T) memory.  Choosing has no gradient.
    """
    kept = first_by(column_mass(q, k), keep)
    one_head = lambda x: x[:, :, None]
    return attend(one_head(rows_at(q, kept)), one_head(k), one_head(v))[:, :, 0]


@on_any_mesh
def local_edge_sampling(
    q: Points, k: Points, v: Points, features: Float[Array, "B T W"], *, keep: int, count: int = 32
) -> Float[Array, "B _ H"]:
    """Rows of attention to `count` neighbors, of the `keep` points where it is most uneven.

    `features` say which points are near; they and the choice have no gradient.
    """
    near = nearest(features, count)
    kept = first_by(jnp.std(_weights(q, k, k, near), axis=-1), keep)
    at = rows_at(near, kept)
    weights = _weights(rows_at(q, kept), rows_at(k, kept), k, at)
    offsets = wide(neighbors(v, at)) - wide(rows_at(v, kept))[:, :, None]
    return jnp.sum(weights[..., None] * offsets, axis=2).astype(v.dtype)


def _weights(
    q: Points, own: Points, k: Float[Array, "B S H"], near: Int[Array, "B T K"]
) -> Float[Array, "B T K"]:
    """Weights of the neighbors of points with queries q and keys `own`."""
    offsets = wide(neighbors(k, near)) - wide(own)[:, :, None]
    scores = jnp.sum(wide(q)[:, :, None] * offsets, axis=-1) / math.sqrt(q.shape[-1])
    return jax.nn.softmax(scores, axis=-1)


@on_any_mesh
def column_mass(q: Points, k: Points) -> Float[Array, "B T"]:
    """The weight that each point gets from all, wide: T together.  Not differentiated."""
    of_blocks = block_mass(q[:, :, None], k[:, :, None], q.shape[1], 1)
    return of_blocks[:, 0, 0]


# ------------------------------------------------------------------------------- points and rows


def nearest(x: Float[Array, "B T W"], count: int) -> Int[Array, "B T K"]:
    """The `count` points nearest to each, itself first, or all points.  Not differentiated."""
    x = finite(lax.stop_gradient(x))
    square = jnp.sum(jnp.square(x), axis=-1)
    distance = square[:, None] - 2 * matmul(x, jnp.swapaxes(x, 1, 2))
    own = jnp.arange(x.shape[1])
    distance = jnp.where((own[:, None] == own[None])[None], -jnp.inf, distance)
    return lax.top_k(-distance, min(count, x.shape[1]))[1]


def neighbors(x: Array, near: Int[Array, "B T K"]) -> Array:
    """x (B,T,...) of each neighbor, (B,T,K,...)."""
    return jax.vmap(lambda x, at: x[at])(x, near)


def rows_at(x: Array, kept: Kept) -> Array:
    """x (B,T,...) of the points kept, (B,M,...)."""
    return jax.vmap(lambda x, at: x[at])(x, kept)


def first_by(scores: Float[Array, "B T"], keep: int) -> Kept:
    """The points of the largest scores, that first; all if there are fewer."""
    return lax.top_k(lax.stop_gradient(scores), min(keep, scores.shape[1]))[1]


def _all_in_order(q: Points, k: Points, v: Points) -> Points:
    rows = attend(*(x[:, :, None] for x in (q, k, v)))[:, :, 0]
    return rows_at(rows, first_by(column_mass(q, k), q.shape[1]))


_ROUNDED = {"bfloat16": "scores that are rounded may keep other points"}
OPS = (
    Op(
        global_edge_sampling,
        papers=(237,),
        reads="all",
        draw={"keep": 4},
        exempt=_ROUNDED,
        limits=(
            Limit(
                "all points kept: attention in the order of scores",
                {"keep": by_sizes(lambda z: z["T"])},
                _all_in_order,
            ),
        ),
    ),
    Op(
        local_edge_sampling,
        papers=(237,),
        reads="all",
        draw={"keep": 4, "count": 5},
        exempt=_ROUNDED,
    ),
)
