"""Attention on the sphere: keys count by the area that their cell of the grid stands for.

    A_ij = softmax_j(q_i . k_j / sqrt(H) + log w_j),    w_j = 2 pi w(latitude of j) / longitudes
    j everywhere, or within the angle `cutoff` of i along a great circle

The sum over keys is then a quadrature of an integral, which does not depend on the grid, and turns
with the sphere but for its error. w(latitude) are weights of a rule in cos(colatitude): that of
Clenshaw and Curtis on equal angles, poles among them, or that of Gauss and Legendre.

Paper: Bonev et al., "Attention on the Sphere", 2025, arXiv:2505.11157; code:
NVIDIA/torch-harmonics.
Limits: equal weights without a cutoff are softmax attention.
Differs: the map of a neighborhood is an array of booleans, T x S. As in the code its edge is 1.001
times the cutoff, a spacing of latitudes by default there.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text
from attnjax.op import Draw, Limit, Op, Sizes, by_sizes, grid
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import K, Out, Q, V


@dataclass(frozen=True, eq=False)
class Sphere:
    """A grid of latitudes and longitudes, its cells row by row from the north pole.

    colatitudes   (rows,), radians
    weights       (rows,), of the rule in cos(colatitude); they add up to 2
    longitudes    how many, at equal angles from 0
    """

    colatitudes: np.ndarray
    weights: np.ndarray
    longitudes: int

    @property
    def areas(self) -> np.ndarray:
        """Of the cells, (rows * longitudes,); they add up to 4 pi."""
        return np.repeat(2 * math.pi * self.weights / self.longitudes, self.longitudes)

    @property
    def points(self) -> np.ndarray:
        """Of the cells, (rows * longitudes, 3) on the unit sphere."""
        theta = np.repeat(self.colatitudes, self.longitudes)
        turn = 2 * math.pi * np.arange(self.longitudes) / self.longitudes
        phi = np.tile(turn, len(self.colatitudes))
        flat = np.sin(theta)
        return np.stack([flat * np.cos(phi), flat * np.sin(phi), np.cos(theta)], axis=-1)


def equal_angles(rows: int, longitudes: int) -> Sphere:
    """Latitudes at equal angles with both poles, by Clenshaw and Curtis; rows >= 2."""
    if rows < 2:
        raise ValueError(f"rows: {rows}; expected at least 2, the poles")
    n = rows - 1
    theta = math.pi * np.arange(rows) / n
    k = np.arange(1, n // 2 + 1)
    by = np.where(2 * k == n, 1.0, 2.0) / (4.0 * k**2 - 1)
    ends = np.where(np.isin(np.arange(rows), (0, n)), 1.0, 2.0)
    return Sphere(theta, ends / n * (1 - np.cos(2 * np.outer(theta, k)) @ by), longitudes)


def gauss_legendre(rows: int, longitudes: int) -> Sphere:
    """Latitudes at the zeros of the Legendre polynomial of degree `rows`."""
    x, weights = np.polynomial.legendre.leggauss(rows)
    return Sphere(np.arccos(x[::-1]), weights[::-1], longitudes)


@of_whole_text
def spherical_attention(
    q: Q,
    k: K,
    v: V,
    *,
    sphere: Sphere,
    queries: Sphere | None = None,
    cutoff: float | None = None,
    impl: Impl = None,
) -> Out:
    """Softmax attention to the cells of a grid of the sphere.

    sphere    the grid of the keys, S cells, as `equal_angles` or `gauss_legendre` makes it
    queries   that of the queries, if it is another one: a layer may change the grid
    cutoff    radians: only keys as near are seen

    Raises ValueError where the grids are not of T and S cells, which without a cutoff is a matter
    of the keys alone.
    """
    areas = sphere.areas
    if len(areas) != k.shape[1]:
        raise ValueError(f"sphere: {len(areas)} cells; expected S = {k.shape[1]}")
    weigh = mods.mod(jnp.add, key=jnp.asarray(np.log(areas), wide(k).dtype))
    mask = masks.everything
    if cutoff is not None:
        at = (queries or sphere).points
        if len(at) != q.shape[1]:
            raise ValueError(f"queries: {len(at)} cells; expected T = {q.shape[1]}")
        mask = masks.array(np.arccos(np.clip(at @ sphere.points.T, -1, 1)) <= 1.001 * cutoff)
    return attend(q, k, v, mods=(weigh,), mask=mask, impl=impl)


def _of(letter: str) -> Draw:
    return by_sizes(lambda z: gauss_legendre(*grid(z[letter])))


def _even(z: Sizes) -> Sphere:
    rows, longitudes = grid(z["S"])
    return Sphere(np.linspace(0, math.pi, rows), np.full(rows, 2 / rows), longitudes)


OPS = (
    Op(
        spherical_attention,
        papers=(109,),
        reads="all",
        draw={"sphere": _of("S"), "queries": _of("T"), "cutoff": 1.2},
        limits=(
            Limit(
                "equal weights without a cutoff are softmax attention",
                {"sphere": by_sizes(_even), "cutoff": None},
                multi_head_attention,
            ),
        ),
    ),
)
