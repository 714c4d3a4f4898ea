"""Reading few of many: a step attends to the blocks of slots that score highest.

    out = attend_top(q, cache, scores, 64)                      # scores of slots: Loki, TidalDecode
    kept = Summed.empty(cache, block=16).append(k, v)
    out = attend_top(q, kept.cache, kept.scores(q), 64, block=16)    # scores of blocks

Nothing is dropped; the work is that of the slots that are read, whose positions, masks and mods are
their own.  The queries of one call read the same blocks, and query heads that share keys do.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core.blocks import select
from attnjax.core.dispatch import compiled
from attnjax.core.numerics import divide, finite
from attnjax.core.sharding import on_any_mesh
from attnjax.decode.attend import Terms, attend_cache
from attnjax.decode.dense import Dense
from attnjax.typing import Array, Float, Leaf, Out, Q, TokenK, TokenV


def attend_top(
    q: Q,
    cache: Dense,
    scores: Float[Array, "B n X"],
    keep: int,
    *,
    block: int = 1,
    **terms: Unpack[Terms],
) -> Out:
    """`attend_cache` over the `keep` blocks of `block` slots that score highest, or all.

    X is 1, or K for heads of keys that choose for themselves; +inf is always read.
    """
    B, n, X = scores.shape
    if n != -(-cache.slots // block) or X not in (1, cache.k_heads):
        raise ValueError(
            f"attend_top: scores have shape {scores.shape}, expected (B,n,X) with n = "
            f"ceil(L / block) = {-(-cache.slots // block)} and X = 1 or K = {cache.k_heads}"
        )
    return attend_cache(q, _top(cache, scores, min(keep, n), block), **terms)


@on_any_mesh
@compiled("keep", "block")
def _top(cache: Dense, scores: Float[Array, "B n X"], keep: int, block: int) -> Dense:
    by_head = jnp.swapaxes(lax.stop_gradient(scores), 1, 2)
    blocks = lax.top_k(by_head, keep)[1].astype(jnp.int32)  # (B,X,keep)
    slots = blocks[..., None] * block + jnp.arange(block, dtype=jnp.int32)
    slots = slots.reshape(*blocks.shape[:2], keep * block)
    return cache.take(jnp.swapaxes(jnp.minimum(slots, cache.slots), 1, 2))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["cache", "sums"], meta_fields=["block"]
)
@dataclass(frozen=True)
class Summed:
    """A dense cache from which nothing is dropped, and the sum of keys of each block, (B,n,K,H)."""

    cache: Dense
    sums: Leaf
    block: int

    @classmethod
    def empty(cls, cache: Dense, *, block: int = 16) -> "Summed":
        """Of an empty cache."""
        B, K, L, H = jax.eval_shape(lambda: cache.stored().k).shape
        return cls(cache, jnp.zeros((B, -(-L // block), K, H)), block)

    def append(self, k: TokenK, v: TokenV, **more: Any) -> "Summed":
        """As `Cache.append`."""
        cache = self.cache.append(k, v, **more)
        at = self.cache.upcoming(k.shape[1])
        real = at < cache.length[:, None]
        examples = jnp.arange(at.shape[0])[:, None]
        block = jnp.where(real, at // self.block, self.sums.shape[1])
        sums = self.sums.at[examples, block].add(finite(k).astype(self.sums.dtype), mode="drop")
        return replace(self, cache=cache, sums=sums)

    def scores(self, q: Q) -> Float[Array, "B n K"]:
        """q . mean key of each block, of all queries and heads that share it; -inf if it is empty.

        The first block, and the one in which the newest token stands, are +inf: always read.
        """
        first = jnp.arange(self.sums.shape[1], dtype=jnp.int32) * self.block
        length = self.cache.length[:, None]
        count = jnp.clip(length - first, 0, self.block)
        means = divide(self.sums, count[..., None, None].astype(self.sums.dtype))
        by_query = select.over_group(select.dot_scores(q, means), means.shape[2])
        scores = by_query.sum(1).swapaxes(1, 2)
        newest = (first < length) & (first + self.block >= length)
        always = (newest | (first == 0))[..., None]
        scores = jnp.where(always, jnp.inf, scores)
        return jnp.where((count > 0)[..., None], scores, -jnp.inf)
