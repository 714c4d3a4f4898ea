"""A dense cache: one slot after the other, and again those of tokens that were dropped."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from attnjax.decode.caches import FIELDS, Cache, empty_fields
from attnjax.typing import Array, Int


@functools.partial(jax.tree_util.register_dataclass, data_fields=FIELDS, meta_fields=["codec"])
@dataclass(frozen=True)
class Dense(Cache):
    """A token goes to the first empty slot of its head: the next one, or one that was dropped."""

    @classmethod
    def empty(cls, B: int, length: int, K: int, H: int, **more: Any) -> "Dense":
        """A cache of `length` slots for K heads of keys (H,) and values (D,), H if not given.

        more: D; heads, K where a policy drops tokens of each head; codec, `Plain()` if not given;
        extra, shapes of what is kept of each token and head besides, () for a number.
        """
        return cls(**empty_fields(B, length, K, H, **more))

    def take(self, slots: Int[Array, "B M X"]) -> "Dense":
        """A cache of the M given slots alone, for each head its own; an L is an empty slot."""
        X, here = slots.shape[2], slots < self.slots
        at = jnp.minimum(slots, self.slots - 1)
        by_head = jnp.swapaxes(at, 1, 2)
        stored = lambda x: jnp.take_along_axis(
            x, by_head.reshape(*by_head.shape, *(1,) * (x.ndim - 3)), axis=2
        )
        of = lambda x: jnp.take_along_axis(x, at, axis=1)
        positions = jnp.broadcast_to(self.positions, (*self.positions.shape[:2], X))
        votes = jnp.broadcast_to(self.votes, positions.shape)
        return replace(
            self,
            k=jax.tree.map(stored, self.k),
            v=jax.tree.map(stored, self.v),
            bad=stored(self.bad),
            extra=jax.tree.map(stored, self.extra),
            positions=jnp.where(here, of(positions), -1),
            votes=jnp.where(here, of(votes), 0.0),
        )

    def _places(self, at: Int[Array, "B T"]) -> Int[Array, "B T X"]:
        """The slot before which as many are free as tokens come before: a binary search."""
        free = jnp.cumsum(self.positions < 0, axis=1, dtype=jnp.int32)
        wanted = jnp.arange(1, at.shape[1] + 1, dtype=jnp.int32)
        find = lambda column: jnp.searchsorted(column, wanted).astype(jnp.int32)
        return jax.vmap(jax.vmap(find, in_axes=1, out_axes=1))(free)
