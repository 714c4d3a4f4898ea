"""Dynamic Perceiver between its stages, and where an example may leave it.

    stage     z' = norm(A^T norm(z) + a) C + c: the first norm and map go over the M latents of a
              channel, for half as many latents, the others over channels, for more of them
    exit      the first classifier k whose largest probability is at least T_k; the last takes all
    T_k       of shares p_k: of some examples the floor(n p_k) surest at k that have not left before

Paper: Han et al., "Dynamic Perceiver for Efficient Visual Recognition", 2023, arXiv:2306.11248;
code: LeapLabTHU/Dynamic_Perceiver, `token_mixer`, `token_expander`, `adaptive_inference.py`.
Limits: thresholds of 0 leave at the first, above 1 at the last.
Differs: nothing; norms are layer norms, in this order: norm, map of latents, norm, map of channels.
Where fewer examples are left than a share asks for, nobody leaves, as in the code.
"""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core.numerics import Affine, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, uniform
from attnjax.ops.attention_free.metaformer import Norm
from attnjax.typing import Array, Float, Int

Exits = Float[Array, " E"]


class Transition(NamedTuple):
    """The norm and map of T latents to M, and of W channels to Y: M = T/2, Y > W in the paper."""

    token_norm: Annotated[Norm, "T"]
    tokens: Annotated[Affine, "T M"]
    norm: Norm
    channels: Annotated[Affine, "W Y"]


@on_any_mesh
def latent_transition(x: Float[Array, "B T W"], weights: Transition) -> Float[Array, "B M Y"]:
    """Fewer and wider latents, from stage to stage."""
    by_channel = jnp.swapaxes(wide(x), 1, 2)
    fewer = weights.tokens(weights.token_norm.of_tokens(by_channel))
    wider = weights.channels(weights.norm.of_tokens(jnp.swapaxes(fewer, 1, 2)))
    return wider.astype(x.dtype)


def exit_at(logits: Float[Array, "E B W"], thresholds: Exits) -> Int[Array, " B"]:
    """The number of the classifier, of E, that each example leaves at."""
    sure = jax.nn.softmax(wide(logits), axis=-1).max(-1)
    leaves = sure >= wide(thresholds)[:, None]
    last = jnp.arange(len(logits), dtype=jnp.int32)[:, None] == len(logits) - 1
    return jnp.argmax(leaves | last, axis=0).astype(jnp.int32)


def exit_thresholds(sure: Float[Array, "E B"], shares: tuple[float, ...]) -> Exits:
    """T of each classifier, from the largest probabilities that B examples have at each.

    `shares` are of all examples, E of them; of the last no share is asked, its threshold is 0.
    Where nobody leaves the threshold is 2.
    """
    E, B = sure.shape
    if len(shares) != E:
        raise ValueError(f"shares: {len(shares)} of them; expected E = {E}")
    found, gone, nobody = [], jnp.zeros(B, bool), jnp.full(1, 2.0, sure.dtype)
    for own, share in zip(sure[:-1], shares, strict=False):
        count = math.floor(B * share)
        rank = jnp.sort(jnp.where(gone, -jnp.inf, own), descending=True)
        rank = jnp.concatenate([rank, nobody])
        there = (count > 0) & (count <= B - gone.sum())
        least = jnp.where(there, rank[max(count, 1) - 1], 2.0)
        gone = gone | (own >= least)
        found.append(least)
    return jnp.stack([*found, jnp.zeros((), sure.dtype)])


def _never(logits: Float[Array, "E B W"]) -> Int[Array, " B"]:
    return jnp.full(logits.shape[1], len(logits) - 1)


def _at_once(logits: Float[Array, "E B W"]) -> Int[Array, " B"]:
    return jnp.zeros(logits.shape[1], jnp.int32)


OPS = (
    Op(latent_transition, papers=(399,), reads="all", sizes={"Y": 10}),
    Op(
        exit_at,
        papers=(399,),
        draw={"thresholds": uniform(0.2, 0.5)},
        sizes={"E": 4, "B": 6},
        limits=(
            Limit("0 leaves at once", {"thresholds": fill(0.0)}, _at_once),
            Limit("2 never leaves", {"thresholds": fill(2.0)}, _never),
        ),
    ),
    Op(
        exit_thresholds,
        papers=(399,),
        draw={"sure": uniform(0.1, 1.0), "shares": (0.3, 0.2, 0.4, 0.1)},
        sizes={"E": 4, "B": 11},
    ),
)
