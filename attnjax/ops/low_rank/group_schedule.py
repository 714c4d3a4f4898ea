"""RITA's scheduler: as keys become alike in training, fewer groups of them are as good.

    R^2 = mean of |q|^2,   d = log(eps) / (2 R): keys within d of their center are off by a factor
                           eps at most in their weight
    center i is mergeable if an earlier one is nearer than 2 d: both groups are within a ball of d
    G' = max(momentum G + (1 - momentum) (G - mean number of mergeable centers), least)

Paper: Liang et al., "RITA: Group Attention is All You Need for Timeseries Analytics", 2023,
arXiv:2306.01926, section 5; code: ljmzlh/RITA, `group_measure`, `update_N_auto_once`.
Limits: eps = 1 merges nothing but equal centers.
Differs: nothing.  R is the root mean square of the queries, as in the code, for a bound that the
paper states for a ball which holds them all; scores count without their 1/sqrt(H).  Centers of
empty groups are at 0, and all but one of them merge.
"""

import math

import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import einsum, finite
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op
from attnjax.typing import Array, Float, Q


@on_any_mesh
def mergeable_groups(
    queries: Q, centers: Float[Array, "B G K H"], *, eps: float = 2.0
) -> Float[Array, "B K"]:
    """How many of the G groups of each head could join another one; `eps` >= 1 is the bound.

    Query heads that share keys bring the mean of all their lengths.
    """
    if eps < 1:
        raise ValueError(f"eps: {eps}; expected at least 1, a bound of a ratio")
    B, T, N, H = queries.shape
    G, K = centers.shape[1:3]
    if N % K:
        raise ValueError(f"centers: K = {K} heads; expected a divisor of N = {N}")
    squares = jnp.square(finite(queries)).sum(-1).reshape(B, T, K, N // K).mean((1, 3))
    c = finite(centers)
    apart = c[:, :, None] - c[:, None]  # (B,G,G,K,H)
    distance = einsum("BgGKH,BgGKH->BgGK", apart, apart)
    earlier = np.tri(G, k=-1, dtype=bool)[None, :, :, None]
    # (2 d)^2 R^2 = log(eps)^2, so that queries of length 0 merge all
    near = distance * squares[:, None, None] < math.log(eps) ** 2
    return (near & earlier).any(2).sum(1).astype(squares.dtype)


def next_groups(
    groups: float | Array, mergeable: Array, *, momentum: float = 0.5, least: int = 10
) -> float | Array:
    """The number of groups of a layer from now on, a real number whose floor is used.

    `mergeable` are counts of some batches, any shape: the scheduler looks after every few of them.
    """
    fewer = groups - jnp.mean(mergeable)
    return jnp.maximum(momentum * groups + (1.0 - momentum) * fewer, least)


def _none(queries: Q, centers: Float[Array, "B G K H"]) -> Float[Array, "B K"]:
    return jnp.zeros((queries.shape[0], centers.shape[2]), queries.dtype)


OPS = (
    Op(
        mergeable_groups,
        papers=(161,),
        draw={"eps": 3000.0},
        sizes={"G": 7},
        limits=(Limit("eps = 1 merges nothing", {"eps": 1.0}, _none),),
    ),
)
