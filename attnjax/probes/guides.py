"""Decisions that attention makes without training: when to speak, and what a pronoun means.

    m_j = sum of the last n of a_j / |a_j|,    a_j weights of token j over all frames but the last

Paper: Papi et al., "Attention as a Guide for Simultaneous Speech Translation", 2022,
arXiv:2212.07850 (`emitted`); Klein and Nabi, "Attention Is (not) All You Need for Commonsense
Reasoning", 2019, arXiv:1905.13497 (`to_pronoun`, `attention_score`, `heads_won`).
Limits: one sentence at a time.
Differs: the text of the first paper has no |a_j| and drops no frame, its code does.  The second
paper's code was not found; `heads_won` is the score that a reading of it left.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from attnjax.typing import Array, Float, Int

PAPERS = (106, 134)


def emitted(cross: Float[Array, "M S"], last: int = 2, threshold: float = 0.1) -> Int[Array, ""]:
    """How many of M new tokens may be emitted before more speech is heard: those before the first
    whose weights on the last frames reach the threshold.

    cross  weights over the frames so far, of one layer (4 of 6), the mean over its heads
    """
    if last < 1:
        raise ValueError(f"last: {last}; expected at least 1")
    seen = cross[:, :-1]
    norm = jnp.sqrt(jnp.square(seen).sum(-1))
    recent = seen[:, -last:].sum(-1) / jnp.where(norm > 0, norm, 1)
    return jnp.sum(jnp.cumsum(recent >= threshold) == 0)


def to_pronoun(
    maps: Float[Array, "L N T T"], candidates: Sequence[Sequence[Sequence[int]]], pronoun: int
) -> Float[Array, "C L N"]:
    """A_c: weights from each candidate to the pronoun.

    candidates  of each its occurrences, of each of these the positions of its pieces: pieces are
                averaged, occurrences summed
    """
    columns = maps[..., pronoun]
    one = lambda pieces: columns[..., jnp.asarray(pieces)].mean(-1)
    return jnp.stack([sum(one(each) for each in places) for places in candidates])


def attention_score(weights: Float[Array, "C L N"]) -> Float[Array, " C"]:
    """Each candidate's share of the weights of the heads in which it has the largest."""
    first = jnp.argmax(weights, axis=0) == jnp.arange(len(weights))[:, None, None]
    won = jnp.where(first, weights, 0).sum((1, 2))
    return won / won.sum()


def heads_won(weights: Float[Array, "C L N"]) -> Float[Array, " C"]:
    """The share of heads in which a candidate has the largest weight; a tie is the first's."""
    first = jnp.argmax(weights, axis=0) == jnp.arange(len(weights))[:, None, None]
    return first.mean((1, 2))
