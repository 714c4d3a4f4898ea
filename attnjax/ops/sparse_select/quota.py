"""QuoTA: frames get tokens by how sure a scorer is that they help with the question.

    w_f = (100 p_f)^2 / sum_g (100 p_g)^2,    p_f the chance of a 'yes' for frame f
    n_f = floor(budget w_f)                                         token_quotas
    n_f = floor(budget min(c w_f, most / budget)), c such that the minima sum to one, or all are
          at the cap                                                capped_quotas

and each frame is brought to its n_f: `resampled` averages over the most square grid of at most as
many cells, `even_tokens` are evenly spaced ones; a frame of none is left out.

Paper: Luo et al., "QuoTA: Query-oriented Token Assignment via CoT Query Decouple for Long Video
Comprehension", 2025, arXiv:2503.08689; code: MAC-AutoML/QuoTA, `llava_arch.py`.
Limits: equal scores give equal quotas; a cap that nobody meets changes nothing.
Differs: the code hands what is above a cap to the other frames in one pass, by shares of all of it,
so that its sum falls short; here it is handed on until the budget or all caps are reached.  Its
bilinear maps are `jax.image.resize`, its merging of similar tokens is left out.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import divide, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, uniform
from attnjax.ops.local_structured.grids import adaptive_means
from attnjax.typing import Array, Float, Int

Scores = Float[Array, "B F"]
Quotas = Int[Array, "B F"]


def _shares(scores: Scores) -> Scores:
    square = jnp.square(100.0 * wide(scores))
    return divide(square, square.sum(-1, keepdims=True))


@on_any_mesh
def token_quotas(scores: Scores, *, budget: int) -> Quotas:
    """How many tokens each of F frames gets, at most `budget` in all and less than F fewer.

    scores are at least 0; no gradient.
    """
    return jnp.floor(budget * _shares(scores)).astype(jnp.int32)


@on_any_mesh
def capped_quotas(scores: Scores, *, budget: int, most: int) -> Quotas:
    """The same where no frame has more than `most` tokens: others share what it would have got."""
    share, cap = _shares(scores), most / budget
    ordered = -jnp.sort(-share, axis=-1)
    F = share.shape[-1]
    left = 1.0 - cap * jnp.arange(F, dtype=share.dtype)  # when so many are at their cap
    rest = jnp.cumsum(ordered[:, ::-1], axis=-1)[:, ::-1]
    factor = divide(left[None] + 0.0 * rest, rest)
    fits = (factor * ordered <= cap * (1 + 1e-6)) & (rest > 0)
    first = jnp.argmax(fits, axis=-1)[:, None]
    factor = jnp.take_along_axis(factor, first, axis=-1)
    within = jnp.where(fits.any(-1, keepdims=True), jnp.minimum(factor * share, cap), cap)
    return jnp.floor(budget * within * (1 + 1e-6)).astype(jnp.int32)


def quota_grid(count: int) -> tuple[int, int]:
    """(rows, columns) of the most square grid of at most `count` cells, 1 at least."""
    if count < 1:
        raise ValueError(f"count: {count}; expected at least 1")
    side = math.isqrt(count)
    return (side + 1, side) if (side + 1) * side <= count else (side, side)


def resampled(
    frame: Float[Array, "B T W"], shape: Sequence[int], count: int
) -> Float[Array, "B M W"]:
    """Means over a grid of at most `count` runs of cells, M of them; `shape` is the frame's."""
    return adaptive_means(frame, shape, quota_grid(count)).astype(frame.dtype)


def even_tokens(T: int, count: int) -> Int[np.ndarray, " M"]:
    """The numbers of `count` of T tokens at even distances."""
    return np.linspace(0, T - 1, count).astype(np.int32)


def _equal(scores: Scores) -> Quotas:
    return jnp.full(scores.shape, 50 // scores.shape[-1], jnp.int32)


def _free(scores: Scores) -> Quotas:
    return token_quotas(scores, budget=50)


_SAMPLE = {"scores": uniform(0.1, 1.0), "budget": 50}

OPS = (
    Op(
        token_quotas,
        papers=(344,),
        draw=_SAMPLE,
        sizes={"F": 6},
        limits=(Limit("equal scores", {"scores": fill(0.3)}, _equal),),
    ),
    Op(
        capped_quotas,
        papers=(344,),
        draw=_SAMPLE | {"most": 12},
        sizes={"F": 6},
        limits=(Limit("a cap that nobody meets", {"most": 50}, _free),),
    ),
)
