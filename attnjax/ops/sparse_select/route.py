"""Routing tokens past a layer: the best of each frame go through it, the others pass unchanged.

    kept   the k tokens of largest score s of each frame, and all tokens of no frame, in order
    mixture_of_depths   out_i = x_i + s_i f(x_kept)_i for these (x_i + f(x_kept)_i of no frame),
                        out_i = x_i for the others

All tokens in one frame are a Mixture of Depths; frames of a video each have their k, so that what a
later frame holds changes nothing in an earlier one.  A layer's cache has kept tokens alone: f gets
their positions.  Routed and dense layers alternate.  What routes otherwise:

    tokens leave for good (IA-RED^2 with a budget)   route(x, importance, k=k, frames=...).tokens
    an image leaves (visual-token exit)              the same with k = 0

Paper: Wu et al., "VideoLLM-MoD: Efficient Video-Language Streaming with Mixture-of-Depths Vision
Computation", 2024, arXiv:2408.16730; Raposo et al., "Mixture-of-Depths", 2024, arXiv:2404.02258.
Limits: k of all tokens with s = 1 is x + f(x); k = 0 without others is x.
Differs: no code was found; that text is not weighted is our reading.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.numerics import finite, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, Sizes, by_sizes, fill
from attnjax.typing import Array, Float, Int

Tokens = Float[Array, "B T W"]
Score = Float[Array, "B T"]
Kept = Float[Array, "B M W"]
Places = Int[Array, "B M"]
Layer = Callable[[Kept, Places], Kept]


class Routed(NamedTuple):
    """The tokens that are kept, wide, and where they stand."""

    tokens: Kept
    index: Places

    def of(self, x: Array) -> Array:
        """What x (B,T,...) has for them."""
        at = self.index.reshape(*self.index.shape, *(1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, at, axis=1)

    def added(self, x: Tokens, more: Kept) -> Tokens:
        """x with so much more at their places; other tokens keep their bits."""
        rows = jnp.arange(x.shape[0])[:, None]
        return wide(x).at[rows, self.index].add(more).astype(x.dtype)


@on_any_mesh
def route(x: Tokens, score: Score, *, k: int, frames: Sequence[int] | None = None) -> Routed:
    """The k tokens of largest score of each frame, or all it has, in the order of the text.

    frames   the number of each token's frame, T of them, the same in all examples; tokens of
             negative ones are always kept.  One frame if None

    Of equal scores the first.  No gradient reaches scores by the choice: use them as weights.
    """
    frame = _frames(x, frames)
    if k < 0:
        raise ValueError(f"k: {k}; expected at least 0")
    ordered = np.sort(frame, kind="stable")
    rank = np.arange(len(frame)) - np.searchsorted(ordered, ordered)
    stays = (ordered < 0) | (rank < k)
    worth = -finite(lax.stop_gradient(score))
    order = jnp.lexsort((worth, jnp.broadcast_to(frame, worth.shape)), axis=-1)
    index = jnp.sort(order[:, np.flatnonzero(stays)], axis=1).astype(jnp.int32)
    tokens = jnp.take_along_axis(wide(x), index[..., None], axis=1)
    return Routed(tokens, index)


def _frames(x: Tokens, frames: Sequence[int] | None) -> np.ndarray:
    T = x.shape[1]
    frame = np.zeros(T, np.int32) if frames is None else np.asarray(frames, np.int32)
    if frame.shape != (T,):
        raise ValueError(f"frames: shape {frame.shape}; expected (T,) = ({T},)")
    return frame


@on_any_mesh
def mixture_of_depths(
    x: Tokens, score: Score, layer: Layer, *, k: int, frames: Sequence[int] | None = None
) -> Tokens:
    """x, and what `layer` adds to the tokens that are routed to it, times their scores.

    layer(tokens (B,M,W), positions (B,M)) -> (B,M,W), attention and MLP without the residual; M is
    static.  Scores are linear in x in the paper, and `frames` as of `route`.
    """
    frame = _frames(x, frames)
    kept = route(x, score, k=k, frames=frames)
    weight = jnp.where(jnp.broadcast_to(frame < 0, score.shape), 1.0, wide(score))
    more = kept.of(weight)[..., None] * layer(kept.tokens, kept.index)
    return kept.added(x, more)


def mixing(tokens: Kept, places: Places) -> Kept:
    """A layer for laws: tokens and their mean, bent, and where they stand."""
    bent = jnp.tanh(tokens + tokens.mean(1, keepdims=True))
    return bent + 0.1 * places[..., None].astype(tokens.dtype)


def sample_frames(z: Sizes) -> tuple[int, ...]:
    """Frames of four tokens, without the first token and every eighth."""
    return tuple(-1 if t % 8 in (0, 7) else t // 4 for t in range(z["T"]))


def _everywhere(x: Tokens) -> Tokens:
    return x + mixing(x, jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]))


OPS = (
    Op(
        mixture_of_depths,
        papers=(375,),
        reads="all",
        draw={"layer": mixing, "k": 2, "frames": by_sizes(sample_frames)},
        limits=(
            Limit("all tokens, of weight one", {"k": 99, "score": fill(1.0)}, _everywhere),
            Limit("all of no frame", {"frames": by_sizes(lambda z: (-1,) * z["T"])}, _everywhere),
        ),
    ),
)
