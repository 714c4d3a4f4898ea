"""Policies: which tokens a cache keeps within a budget, as a pair (vote, keep).

    votes = vote(q, cache, **terms)      (B,L,X), what the newest queries say each slot is worth
    ranks = keep(cache with its votes)   (B,L,X), the larger the safer; inf stays, -inf goes
    the `budget` slots of largest rank stay, of each head by itself

A policy is called behind the attention whose queries vote, with the terms of that attention:

    cache = cache.append(k, v)
    out = attend_cache(q, cache, **terms)
    cache = policy(q, cache, **terms)

So a call of T tokens sees up to budget + T, for which the cache needs slots.  What is dropped never
returns; slots become empty and nothing moves.  Heads that are to choose for themselves need
`Dense.empty(..., heads=K)`; query heads that share keys add their votes, and so do all heads of a
cache with one list of tokens.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core import masks
from attnjax.core.dispatch import compiled
from attnjax.core.sharding import on_any_mesh
from attnjax.decode.attend import masses
from attnjax.decode.dense import Dense
from attnjax.ops import kv_decode
from attnjax.ops.kv_decode.snapkv import MEAN_OF_FIVE
from attnjax.ops.kv_decode.streaming_vlm import USER
from attnjax.typing import Array, Bool, Float, Int, Q

Votes = Float[Array, "B L X"]
Vote = Callable[..., Votes]
Keep = Callable[[Dense], Votes]


@dataclass(frozen=True)
class Policy:
    """(vote, keep) under a budget of slots for each head; see the module's first lines.

    Raises ValueError for a budget smaller than the tokens that `keep` holds in any case.
    """

    vote: Vote
    keep: Keep
    budget: int

    def __post_init__(self) -> None:
        forced = getattr(self.keep, "forced", 0)
        if self.budget < max(1, forced):
            raise ValueError(
                f"Policy: budget is {self.budget}, expected at least 1, and at least the {forced} "
                "tokens that are kept in any case"
            )

    def __call__(self, q: Q, cache: Dense, **terms: Any) -> Dense:
        """The cache after a vote of the T newest queries, within the budget."""
        if not isinstance(cache, Dense):
            raise TypeError(
                f"Policy: cache is a {type(cache).__name__}, expected a Dense, from which single "
                "tokens can be dropped"
            )
        voted = replace(cache, votes=lax.stop_gradient(self.vote(q, cache, **terms)))
        return keep_best(voted, self.keep(voted), self.budget)


@on_any_mesh
@compiled("budget")
def keep_best(cache: Dense, ranks: Votes, budget: int) -> Dense:
    """The cache with the `budget` slots of largest rank of each head; of equals the first slots."""
    held = (cache.positions >= 0) & (ranks > -jnp.inf)
    if budget < cache.slots:
        by_head = jnp.swapaxes(jnp.where(held, ranks, -jnp.inf), 1, 2)
        best = lax.top_k(by_head, budget)[1]
        chosen = jnp.put_along_axis(
            jnp.zeros(by_head.shape, bool), best, True, axis=-1, inplace=False
        )
        held = held & jnp.swapaxes(chosen, 1, 2)
    return drop(cache, ~held)


def drop(cache: Dense, gone: Bool[Array, "B L X"]) -> Dense:
    """The cache without the tokens in these slots, such as those of an image that may exit."""
    return replace(cache, positions=jnp.where(gone, -1, cache.positions))


# --------------------------------------------------------------------------------------- votes


def no_vote(q: Q, cache: Dense, **terms: Any) -> Votes:
    """What the cache holds: queries have no say."""
    return cache.votes


def sum_of_weights(q: Q, cache: Dense, **terms: Any) -> Votes:
    """The weights that a token has been given so far, by all queries since it came."""
    return cache.votes + masses(q, cache, **terms)


def last_weights(q: Q, cache: Dense, *, last: int, **terms: Any) -> Votes:
    """The weights that the last queries of each example give."""
    mask = terms.pop("mask", masks.causal) & ~masks.lengths(q=cache.length - last)
    return masses(q, cache, mask=mask, **terms)


def last_weight_of_all(q: Q, cache: Dense, **terms: Any) -> Votes:
    """The weight that the last query gives, of all heads together: one decision for all."""
    votes = last_weights(q, cache, last=1, **terms)
    return jnp.broadcast_to(votes.sum(2, keepdims=True), votes.shape)


@dataclass(frozen=True)
class WindowVotes:
    """The last `window` queries' weights for what is before them, smoothed over neighbors.

    Steps with fewer queries leave the votes as they are.
    """

    window: int
    smooth: Callable[[Array], Array]

    def __call__(self, q: Q, cache: Dense, **terms: Any) -> Votes:
        if q.shape[1] < self.window:
            return cache.votes
        votes = last_weights(q, cache, last=self.window, **terms)
        before = cache.positions < (cache.length - self.window)[:, None, None]
        votes = jnp.where(before & (cache.positions >= 0), votes, 0.0)
        order = _by_position(cache)
        smoothed = self.smooth(jnp.take_along_axis(votes, order, axis=1))
        return jnp.take_along_axis(smoothed, jnp.argsort(order, axis=1), axis=1)


def _by_position(cache: Dense) -> Int[Array, "B L X"]:
    """The slots in the order of the text, empty ones behind."""
    far = jnp.iinfo(jnp.int32).max
    return jnp.argsort(jnp.where(cache.positions < 0, far, cache.positions), axis=1)


# --------------------------------------------------------------------------------- what is kept


@dataclass(frozen=True)
class Largest:
    """The tokens of most votes; the first `sinks` and the last `recent` of the text in any case."""

    sinks: int = 0
    recent: int = 0

    @property
    def forced(self) -> int:
        return self.sinks + self.recent

    def __call__(self, cache: Dense) -> Votes:
        at, end = cache.positions, cache.length[:, None, None]
        stays = (at < self.sinks) | (at >= end - self.recent)
        return jnp.where(stays, jnp.inf, cache.votes)


@dataclass(frozen=True)
class Latest:
    """The last tokens, and the first `sinks` in any case."""

    sinks: int = 0

    @property
    def forced(self) -> int:
        return self.sinks + 1

    def __call__(self, cache: Dense) -> Votes:
        at = cache.positions
        return jnp.where(at < self.sinks, jnp.inf, at.astype(cache.votes.dtype))


@dataclass(frozen=True)
class Rounds:
    """What the rules of `ops.kv_decode.streaming_vlm` keep, and nothing else."""

    vision_rounds: int
    text_rounds: int
    sink: int
    window: int

    def __call__(self, cache: Dense) -> Votes:
        order = _by_position(cache)[..., 0]
        there = cache.positions[..., 0] >= 0
        kinds, rounds = (x[..., 0].astype(jnp.int32) for x in cache.riders())
        # an empty slot is a user's token of long ago
        kinds, rounds = jnp.where(there, kinds, USER), jnp.where(there, rounds, -(1 << 30))

        def of_example(order: Array, kinds: Array, rounds: Array) -> Array:
            kept = kv_decode.streaming_vlm(
                kinds[order], rounds[order], rounds.max(), **dataclasses.asdict(self)
            )
            slots = jnp.where(kept >= 0, order[kept], order.size)
            return jnp.full(order.shape, -jnp.inf).at[slots].set(jnp.inf, mode="drop")

        ranks = jax.vmap(of_example)(order, kinds, rounds)[..., None]
        return jnp.broadcast_to(ranks, cache.votes.shape)


# ---------------------------------------------------------------------------- policies of papers


def streaming_llm(budget: int, *, sinks: int = 4) -> Policy:
    """Sinks, and the latest tokens.  Xiao et al. 2023, arXiv:2309.17453.

    With `attend_cache(q, renumbered(cache), turn=rotary)` positions are those in the cache, as in
    the paper: `ops.kv_decode.streaming_attention` one token at a time, window = budget - sinks + 1.
    """
    return Policy(no_vote, Latest(sinks), budget)


def h2o(budget: int, *, recent: int | None = None) -> Policy:
    """Heavy hitters: the largest sums of weights so far, and `recent` tokens, half if None.

    Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language
    Models", 2023, arXiv:2306.14048; code: FMInference/H2O.
    """
    return Policy(sum_of_weights, Largest(recent=budget // 2 if recent is None else recent), budget)


def tova(budget: int) -> Policy:
    """The tokens that the last query weighs most, on the mean of all heads; no other is safe.

    Oren et al., "Transformers are Multi-State RNNs", 2024, arXiv:2401.06104; code:
    schwartz-lab-NLP/TOVA.
    """
    return Policy(last_weight_of_all, Largest(), budget)


def snapkv(
    budget: int,
    *,
    window: int = 32,
    smooth: Callable[[Array], Array] = MEAN_OF_FIVE,
) -> Policy:
    """What the last `window` queries of a prompt weigh most, smoothed, and these tokens themselves.

    Li et al. 2024, arXiv:2404.14469: `ops.kv_decode.snapkv` as a policy.  The released code keeps
    every token that is generated: there call this once, behind the prompt.  Called at each step it
    stays within its budget, by the votes of the prompt.
    """
    return Policy(WindowVotes(window, smooth), Largest(recent=window), budget)


def pyramid_budgets(budget: int, depth: int, *, window: int = 32, beta: int = 20) -> list[int]:
    """Slots for each of `depth` layers, `budget` on the mean, falling by equal steps.

    The last layer has (budget - window) / beta beside its window.  Of the released code.
    """
    free = budget - window
    if depth < 2 or free < beta:
        raise ValueError(
            f"pyramid_budgets: budget, depth are {budget}, {depth}; expected at least window + "
            f"beta = {window + beta}, and 2 layers"
        )
    least = free // beta
    most = 2 * free - least
    step = (most - least) // (depth - 1)
    return [window + most - layer * step for layer in range(depth)]


def pyramidkv(budget: int, depth: int, *, window: int = 32, beta: int = 20) -> list[Policy]:
    """SnapKV with more slots in early layers: a policy for each.

    Cai et al., "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
    2024, arXiv:2406.02069; code: Zefan-Cai/PyramidKV.
    """
    budgets = pyramid_budgets(budget, depth, window=window, beta=beta)
    return [snapkv(slots, window=window) for slots in budgets]


def streaming_vlm(
    *, vision_rounds: int = 16, text_rounds: int = 16, sink: int = 512, window: int = 512
) -> Policy:
    """What `ops.kv_decode.streaming_vlm` keeps of a stream, whose rounds are its budget.

    The cache rides along what each token is, and its round: `Dense.empty(..., extra=((), ()))` and
    `append(k, v, (kinds, rounds))`, both (B,T,K).  The largest round that is held is now.
    """
    keep = Rounds(vision_rounds, text_rounds, sink, window)
    return Policy(no_vote, keep, budget=jnp.iinfo(jnp.int32).max)
