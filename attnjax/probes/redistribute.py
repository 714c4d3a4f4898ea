"""Weights taken from some keys and given to others, after the softmax.

    w'_ij = share w_ij                                               j gives
    w'_ij = w_ij (1 + (1 - share) sum_{l gives} w_il / sum_{l takes} w_il)    j takes

Rows keep their sums; a row in which no key that takes has weight stays as it is.

Paper: Yu et al., "Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language Models
without Training through Attention Calibration", 2024, arXiv:2406.15765 (`later_sinks`,
`calibrated`); Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal
Models", 2025, arXiv:2503.03321 (`massive_tokens`, `image_centered`, `to_image`).
Limits: maps are held whole.
Differs: the first paper's code leaves out the first of the sinks that it finds, which is key 0
where that is one; here key 0 is left out always.
"""

import jax.numpy as jnp

from attnjax.probes.sinks import sink_scores
from attnjax.typing import Array, Bool, Float

PAPERS = (23, 272)

Maps = Float[Array, "*rest T S"]
Keys = Bool[Array, "*rest S"]


def redistribute(
    maps: Maps, giving: Bool[Array, "..."], taking: Bool[Array, "..."], share: float
) -> Maps:
    """Keys that give keep that share of their weights, those that take get the rest of them.

    giving, taking  booleans that broadcast to the maps (..., T, S), no key both

    What is given is shared in proportion to the weights there are.
    """
    given = jnp.where(giving, maps, 0).sum(-1, keepdims=True)
    there = jnp.where(taking, maps, 0).sum(-1, keepdims=True)
    able = there > 0
    gain = (1 - share) * given / jnp.where(able, there, 1)
    moved = maps * jnp.where(giving, share, jnp.where(taking, 1 + gain, 1))
    return jnp.where(able, moved, maps)


def later_sinks(maps: Maps, threshold: float = 0.1) -> Keys:
    """Keys but the first whose mean weight from later queries is above the threshold: (..., S).

    Of causal maps.  The paper's own threshold is 5 / T.
    """
    return (sink_scores(maps) > threshold) & (jnp.arange(maps.shape[-1]) > 0)


def calibrated(maps: Maps, threshold: float = 0.1, share: float = 0.4) -> Maps:
    """Maps of causal heads whose later sinks keep that share, the rest goes to all other keys.

    Which heads gain from it is found by trying one at a time on held-out prompts, layers 2 to the
    last but one; maps of other heads are left as they are.
    """
    sinks = later_sinks(maps, threshold)[..., None, :]
    return redistribute(maps, sinks, ~sinks, share)


def massive_tokens(
    x: Float[Array, "*rest W"], channels: tuple[int, ...], threshold: float = 20.0
) -> Bool[Array, "*rest"]:
    """Tokens that are sinks by their input of a layer: |x_d| > threshold rms(x), d a channel.

    The channels are those of the model where its first token is massive (1415 and 2533 in a
    LLaMA-2-7B).
    """
    rms = jnp.sqrt(jnp.mean(jnp.square(x), axis=-1))
    return jnp.abs(x[..., jnp.asarray(channels)]).max(-1) > threshold * rms


def image_centered(
    maps: Maps, image: Keys, sinks: Keys, rho: float = 0.5, least: float = 0.2
) -> Bool[Array, "*rest T"]:
    """Queries of heads that look at the image, and there not at its sinks.

        V = sum of weights on the image >= least,    weights on its sinks <= rho V

    image, sinks (..., S) booleans.  False where the image has no sink.
    """
    seen = jnp.where(image[..., None, :], maps, 0).sum(-1)
    lost = jnp.where((image & sinks)[..., None, :], maps, 0).sum(-1)
    some = (image & sinks).any(-1)[..., None]
    return some & (seen >= least) & (lost <= rho * seen)


def to_image(
    maps: Maps, image: Keys, sinks: Keys, queries: Bool[Array, " T"], share: float = 0.6
) -> Maps:
    """In `image_centered` heads all sinks keep that share, the image without its sinks takes it.

    queries  those of text behind the image; the others' rows stay.  The paper leaves layers 0, 1
    and the last alone.  Thresholds are those of `image_centered`.
    """
    there = (image_centered(maps, image, sinks) & queries)[..., None]
    moved = redistribute(maps, sinks[..., None, :], (image & ~sinks)[..., None, :], share)
    return jnp.where(there, moved, maps)
