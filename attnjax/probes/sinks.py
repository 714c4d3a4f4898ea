"""Attention sinks: keys that draw attention from nearly every query.

    score_k = 1/(T-k) sum_{i >= k} A_ik,      k = 0 .. S-1,  queries i = 0 .. T-1

Papers: Gu et al., "When Attention Sink Emerges in Language Models", 2024, arXiv:2410.10781
(sink rate); Wong et al., "On the Existence and Behaviour of Secondary Attention Sinks", 2025,
arXiv:2512.22213 (secondary sinks).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PAPERS = (394,)


def sink_scores(maps: jax.Array) -> jax.Array:
    """Mean weight that each key gets from the queries that come at or after it.

    maps (..., T, S) of causal attention -> (..., S).  Queries before the key cannot see it, so
    they do not count.
    """
    T, S = maps.shape[-2:]
    later = jnp.arange(T)[:, None] >= jnp.arange(S)[None, :]
    later = later.astype(maps.dtype)
    later = later.reshape((1,) * (maps.ndim - 2) + (T, S))
    seen = jnp.maximum(later.sum(-2), 1)
    return (maps * later).sum(-2) / seen


def sink_rate(maps: jax.Array, threshold: float = 0.3) -> jax.Array:
    """The fraction of heads whose score of the first key exceeds the threshold, in [0, 1].

    maps (..., B, N, T, S): scores are averaged over the batch, then each layer's head votes once.
    """
    scores = sink_scores(maps)[..., 0].mean(-2)
    return (scores > threshold).astype(scores.dtype).mean()


class Sink(NamedTuple):
    """A key that is a sink in layers first .. last (inclusive), with its largest score there."""

    position: int
    first: int
    last: int
    score: float


def secondary_sinks(maps: jax.Array | np.ndarray, threshold: float = 0.1) -> list[Sink]:
    """Keys other than the first that are sinks in one contiguous range of middle layers.

    maps (layers, N, T, S), of one sequence: the score of a key in a layer is its mean over heads.
    "Middle" is relative to the primary sink: the range starts in a later layer than the one where
    the first key becomes a sink (than layer 0, if it never does).  A key that is a sink in several
    separate ranges does not count.  The last eighth of the keys is left out: too few queries see
    them for a mean to say much.
    """
    scores = np.asarray(sink_scores(jnp.asarray(maps)).mean(1))
    above = scores > threshold
    primary = int(above[:, 0].argmax())
    found = []
    for position in range(1, scores.shape[1] - scores.shape[1] // 8):
        layers = np.flatnonzero(above[:, position])
        if len(layers) and layers[0] > primary and layers[-1] - layers[0] + 1 == len(layers):
            peak = float(scores[layers, position].max())
            found.append(Sink(position, int(layers[0]), int(layers[-1]), peak))
    return found
