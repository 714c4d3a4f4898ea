"""A-VL: caches of images and of text are cut by rules of their own.

    policy = a_vl(images=288, texts=512)
    told = (is_image,)                       # (B,T,K) numbers, 1 for a token of an image
    cache = Dense.empty(B, L, K, H, heads=K, extra=((),)).append(k, v, told)
    out = attend_cache(q, cache)
    cache = policy(q, cache)

    image token   vote: the weight that the prompt's last token gives it, all heads together;
                  of these the `images` largest stay, which is decided once
    text token    vote: the sum of all weights that it was given; the latest `recent` stay, and of
                  the others the largest, `texts` in all

A step reads less than what is held: the core, the image tokens of largest vote, and all text.

    out = attend_top(q, cache, core_scores(cache), core + texts)

and every few steps all of it once, behind which `voted_again` takes the votes of that step's query.

Zhang et al., "A-VL: Adaptive Attention for Large Vision-Language Models", 2024, arXiv:2409.14846;
the repository's list of options tells the two budgets and the steps, its README no more.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from attnjax.decode.dense import Dense
from attnjax.decode.policies import Policy, Votes, last_weight_of_all, sum_of_weights
from attnjax.typing import Array, Bool, Q

PAPERS = (233,)


def _images(cache: Dense) -> Bool[Array, "B L X"]:
    """Which slots hold a token of an image."""
    told = cache.riders()[0][..., : cache.heads]
    return (told > 0) & (cache.positions >= 0)


def votes_by_kind(q: Q, cache: Dense, **terms: Any) -> Votes:
    """Sums of weights for text; for images the last query's, kept once they are there.

    The first call behind an image gives its tokens their votes, so that they are those of the
    prompt's last token when the prompt comes at once.
    """
    image = _images(cache)
    fresh = jnp.where(cache.votes > 0, cache.votes, last_weight_of_all(q, cache, **terms))
    return jnp.where(image, fresh, sum_of_weights(q, cache, **terms))


def voted_again(q: Q, cache: Dense, **terms: Any) -> Dense:
    """The cache with this query's weights as the votes of image tokens: the core is picked anew."""
    votes = jnp.where(_images(cache), last_weight_of_all(q, cache, **terms), cache.votes)
    return replace(cache, votes=votes)


@dataclass(frozen=True)
class ByKind:
    """Of images the tokens of most votes; of text these and the latest `recent`."""

    images: int
    texts: int
    recent: int

    def __call__(self, cache: Dense) -> Votes:
        image, there = _images(cache), cache.positions >= 0
        text = there & ~image
        latest = _rank(jnp.where(text, cache.positions, -1).astype(cache.votes.dtype))
        worth = jnp.where(latest < self.recent, jnp.inf, cache.votes)
        best = lambda kind, votes: _rank(jnp.where(kind, votes, -jnp.inf))
        stays = image & (best(image, cache.votes) < self.images)
        stays = stays | (text & (best(text, worth) < self.texts))
        return jnp.where(stays, jnp.inf, -jnp.inf)


def _rank(x: Votes) -> Array:
    """How many slots are worth more, or as much and stand before."""
    return jnp.argsort(jnp.argsort(-x, axis=1, stable=True), axis=1)


def core_scores(cache: Dense) -> Votes:
    """Scores for `attend_top`: text always, images by their votes, empty slots never."""
    there = cache.positions >= 0
    return jnp.where(there, jnp.where(_images(cache), cache.votes, jnp.inf), -jnp.inf)


def a_vl(images: int, texts: int, *, recent: int | None = None) -> Policy:
    """Both budgets for each head; half of the text's are the latest tokens if `recent` is None."""
    recent = texts // 2 if recent is None else recent
    if images < 0 or not 0 <= recent <= texts or texts < 1:
        raise ValueError(
            f"a_vl: images, texts, recent are {images}, {texts}, {recent}; expected at least 0 and "
            "1, and recent at most texts"
        )
    return Policy(votes_by_kind, ByKind(images, texts, recent), images + texts)
