"""Geometric algebra attention: scores and values of tuples of points, by products of vectors.

    p_ij = r_i r_j = r_i . r_j + r_i ^ r_j,    q_ij = (r_i . r_j, |r_i ^ r_j|, |r_i|, |r_j|)
    u_ij = V(q_ij) C + (x_i M_1 + x_j M_2) D,    w_ij = softmax_j(S(u_ij)),    y_i = sum_j w_ij u_ij
    r'_i = sum_j w_ij R(u_ij) (a_1 r_i x r_j + a_2 r_i + a_3 r_j)

V, S and R are small networks. q has only what a rotation leaves, so y is invariant and r' turns
with the points; relative vectors make both blind to translations. Tuples of three have the product
r_i r_j r_k, whose vector's norm and trivector come before the numbers above, and so on; a softmax
over all tuples gives one y of a cloud.

Paper: Spellings, "Geometric Algebra Attention Networks for Small Point Clouds", 2021,
arXiv:2110.02393; code: klarh/geometric_algebra_attention.
Limits: S = 0 is the mean over tuples.
Differs: "single" invariants are the first two, "partial" the first 2 rank - 1, "full" all rank^2,
whatever V's first layer is wide enough for, and likewise the vectors by the kernels a. Means in the
place of the maps M and C, D are those maps: identities divided by the rank and by 2. Weights of
points, normalized products and convex kernels are not here.
"""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu

from attnjax.core.numerics import Affine, aligned, matmul, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float

Points = Float[Array, "B T 3"]
Labels = Float[Array, "B T W"]


class ValueNet(NamedTuple):
    """V, from F invariants to the width of the labels; relu between."""

    first: Annotated[Affine, "F M"]
    second: Annotated[Affine, "M W"]

    def __call__(self, x: Array) -> Array:
        return self.second(relu(self.first(x)))


class NumberNet(NamedTuple):
    """S or R, to one number; relu between."""

    first: Annotated[Affine, "W M"]
    second: Annotated[Affine, "M 1"]

    def __call__(self, x: Array) -> Array:
        return self.second(relu(self.first(x)))


class Nets(NamedTuple):
    """What is learned; `merge` has a map for each point of a tuple, the first for i."""

    value: ValueNet
    score: NumberNet
    merge: Float[Array, "K W W"]
    join: Float[Array, "2 W W"]


@on_any_mesh
def geometric_attention(x: Labels, points: Points, nets: Nets) -> Labels:
    """y of each point: invariant, O(T^rank) work and memory for a rank of as many maps `merge`."""
    u, _, rank = _tuples(x, points, nets)
    weights = _over_tuples(nets.score(u), 2)
    return jnp.sum(weights * u, axis=tuple(range(2, rank + 1))).astype(x.dtype)


@on_any_mesh
def geometric_pool(x: Labels, points: Points, nets: Nets) -> Float[Array, "B W"]:
    """One y of each cloud: the softmax is over all tuples."""
    u, _, rank = _tuples(x, points, nets)
    weights = _over_tuples(nets.score(u), 1)
    return jnp.sum(weights * u, axis=tuple(range(1, rank + 1))).astype(x.dtype)


@on_any_mesh
def geometric_vectors(
    x: Labels, points: Points, nets: Nets, scale: NumberNet, kernels: Float[Array, " V"]
) -> Points:
    """r' of each point, which turns with the points; V kernels weigh the first V vectors."""
    u, vectors, rank = _tuples(x, points, nets)
    weights = _over_tuples(nets.score(u), 2)
    kept = [aligned(a, v) * v for a, v in zip(wide(kernels), vectors, strict=False)]
    moved = weights * scale(u) * sum(kept)
    return jnp.sum(moved, axis=tuple(range(2, rank + 1))).astype(points.dtype)


def _over_tuples(scores: Array, first: int) -> Array:
    """Softmax over the axes from `first` to those of the tuples' last point."""
    flat = scores.reshape(*scores.shape[:first], math.prod(scores.shape[first:-1]), 1)
    return jax.nn.softmax(flat, axis=first).reshape(scores.shape)


def _tuples(x: Labels, points: Points, nets: Nets) -> tuple[Array, list[Array], int]:
    """u of every tuple (B,i,j,...,W), the vectors of its products, and the rank."""
    rank, nets = len(nets.merge), jax.tree.map(wide, nets)
    numbers, vectors = _products(_each(wide(points), rank))
    count = nets.value.first.w.shape[0]
    whole = jnp.broadcast_shapes(*(n.shape for n in numbers))
    spread = lambda n: jnp.broadcast_to(n, (*whole[:-1], n.shape[-1]))
    values = nets.value(jnp.concatenate([spread(n) for n in numbers], axis=-1)[..., :count])
    merged = [matmul(y, m) for y, m in zip(_each(wide(x), rank), nets.merge, strict=True)]
    return matmul(values, nets.join[0]) + matmul(_sum(merged), nets.join[1]), vectors, rank


def _sum(terms: list[Array]) -> Array:
    """Terms that broadcast against each other."""
    shape = jnp.broadcast_shapes(*(x.shape for x in terms))
    return sum((jnp.broadcast_to(x, shape) for x in terms), jnp.zeros(shape, terms[0].dtype))


def _each(x: Array, rank: int) -> list[Array]:
    """x (B,T,D) as each point of the tuples (B,i,j,...)."""
    B, T, D = x.shape
    place = lambda axis: (B, *(T if i == axis else 1 for i in range(rank)), D)
    return [x.reshape(place(axis)) for axis in range(rank)]


# ----------------------------------------------------------------------------------- the products


def _products(vectors: list[Array]) -> tuple[list[Array], list[Array]]:
    """Invariants and vectors of all products of points that follow each other, the longest first.

    An even product is a scalar and a bivector, kept as the vector dual to it; an odd one a vector
    and a trivector.
    """
    numbers: list[Array] = []
    covariant: list[Array] = []
    for start in range(len(vectors)):
        vector, scalar = vectors[start], None
        found = [(_norm(vector), vector)]
        for i, other in enumerate(vectors[start + 1 :]):
            vector, scalar = _times(vector, scalar, other, even=i % 2 == 1)
            parts = (scalar, _norm(vector)) if i % 2 == 0 else (_norm(vector), scalar)
            shape = jnp.broadcast_shapes(*(x.shape for x in parts))
            pair = jnp.concatenate([jnp.broadcast_to(x, shape) for x in parts], axis=-1)
            found.append((pair, vector))
        for invariants, moved in reversed(found):
            numbers.append(invariants)
            covariant.append(moved)
    return numbers, covariant


def _times(vector: Array, scalar: Array | None, other: Array, even: bool) -> tuple[Array, Array]:
    """The product of a multivector and a vector: its vector or dual vector, and its number.

    (s + I d) c = (s c - d x c) + I d . c, and (v + I t) c = v . c + I (v x c + t c).
    """
    across, dot = _cross(vector, other), _dot(vector, other)
    if scalar is None:
        return across, dot
    along = scalar * other
    return (along - across if even else across + along), dot


def _cross(a: Array, b: Array) -> Array:
    shape = jnp.broadcast_shapes(a.shape, b.shape)
    return jnp.cross(jnp.broadcast_to(a, shape), jnp.broadcast_to(b, shape))


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, axis=-1, keepdims=True)


def _norm(x: Array) -> Array:
    """The length; of zero, zero with gradient zero."""
    square = _dot(x, x)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _without_scores(nets: Nets) -> Nets:
    return nets._replace(score=jax.tree.map(jnp.zeros_like, nets.score))


def _mean(over: tuple[int, ...]) -> Callable[..., Array]:
    def mean(x: Labels, points: Points, nets: Nets) -> Array:
        return jnp.mean(_tuples(x, points, nets)[0], axis=over)

    return mean


_FLAT = {"nets": adjusted(_without_scores)}
_SIZES = {"K": 2, "F": 4, "M": 5, "W": 6, "T": 6, "S": 6}
OPS = (
    Op(
        geometric_attention,
        papers=(265,),
        reads="all",
        sizes=_SIZES,
        limits=(Limit("S = 0 is the mean over the other points", _FLAT, _mean((2,))),),
    ),
    Op(
        geometric_pool,
        papers=(265,),
        reads="all",
        sizes=_SIZES,
        limits=(Limit("S = 0 is the mean over all pairs", _FLAT, _mean((1, 2))),),
    ),
    Op(geometric_vectors, papers=(265,), reads="all", sizes=_SIZES | {"V": 3}),
)
