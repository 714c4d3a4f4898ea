"""A paged cache: tokens lie in pages that all examples draw from, each with a list of its own.

    cache = Paged.empty(B, 4096, K, H, pages=1024, page=16)
    many = cache.fork(4)  # four texts go on from each: what they share lies there once

A page is taken when a text reaches it and is free when no text has it any more, after `rewind`.
Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention",
2023, arXiv:2309.06180.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from attnjax.decode.caches import FIELDS, Cache, empty_fields
from attnjax.typing import Array, Bool, Int, Leaf


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[*FIELDS, "lists", "readers"],
    meta_fields=["codec"],
)
@dataclass(frozen=True)
class Paged(Cache):
    """Token i of a text is in the page lists[b, i // page], at place i % page.

    k, v, bad, extra   trees of arrays (pages, page, K, ...)
    lists        (B, L / page) int32, -1 where a text has not reached
    readers      (pages,) int32, how many texts have each page

    Reading gathers the pages of each text first: memory of a dense cache for the time of a call.
    """

    lists: Leaf
    readers: Leaf

    kept: ClassVar[str] = "longer lists, or more pages"

    @classmethod
    def empty(
        cls, B: int, length: int, K: int, H: int, *, pages: int, page: int = 16, **more: Any
    ) -> "Paged":
        """Texts of up to `length` tokens in so many pages; more: D, codec, extra, as in `Dense`."""
        if page < 1 or pages < 1:
            raise ValueError(f"Paged: pages, page are {pages}, {page}; expected at least 1")
        fields = empty_fields(pages, page, K, H, **more)
        of_texts = empty_fields(B, -(-length // page) * page, K, 0)
        if fields["positions"].shape[2] > 1:
            raise ValueError("Paged: heads, expected 1: the heads of a token lie in one page")
        for name in ("k", "v", "bad", "extra"):
            fields[name] = jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2), fields[name])
        for name in ("positions", "votes", "start", "length", "lost"):
            fields[name] = of_texts[name]
        lists = jnp.full((B, -(-length // page)), -1, jnp.int32)
        return cls(**fields, lists=lists, readers=jnp.zeros((pages,), jnp.int32))

    @property
    def page(self) -> int:
        """Tokens in a page."""
        return self.slots // self.lists.shape[1]

    def fork(self, copies: int) -> "Paged":
        """Each text `copies` times, one behind the other; they share all pages.

        A page that two texts share is copied for one that goes on writing in it.
        """
        again = lambda x: jnp.repeat(x, copies, axis=0)
        names = ("positions", "votes", "start", "length", "lost", "lists")
        texts = {name: again(getattr(self, name)) for name in names}
        return replace(self, **texts, readers=self.readers * copies)

    def _by_text(self, x: Array) -> Array:
        """(pages,page,K,...) -> (B,K,L,...)."""
        B, n = self.lists.shape
        x = jnp.take(x, self.lists, axis=0, mode="clip")
        return x.reshape(B, n * self.page, *x.shape[3:]).swapaxes(1, 2)

    def _places(self, at: Int[Array, "B T"]) -> Int[Array, "B T X"]:
        return at[..., None]

    def _reserved(self, length: Int[Array, " B"]) -> "Paged":
        """The cache with pages for texts of these lengths, those to be written in their own."""
        n = jnp.arange(self.lists.shape[1], dtype=jnp.int32)
        new = (self.lists < 0) & (n * self.page < length[:, None])
        grows = (length > self.length) & (self.length % self.page > 0)
        shared = jnp.take(self.readers, self.lists, mode="clip") > 1
        copy = (n == self.length[:, None] // self.page) & grows[:, None] & shared
        pages, readers, enough = _allocate(self.readers, new | copy)
        old = jnp.where(copy, self.lists, -1).max(1)
        to = jnp.where(copy & (pages >= 0), pages, self.readers.size).min(1)
        copied = lambda x: x.at[to].set(jnp.take(x, old, axis=0, mode="clip"), mode="drop")
        # a text that finds no page has none there, and is lost
        return replace(
            self,
            k=jax.tree.map(copied, self.k),
            v=jax.tree.map(copied, self.v),
            bad=copied(self.bad),
            extra=jax.tree.map(copied, self.extra),
            lists=jnp.where(new | copy, pages, self.lists),
            readers=readers - _count(self.lists, copy, readers),
            lost=self.lost | ~enough.all(1),
        )

    def _put(self, store: Array, new: Array, places: Int[Array, "B T X"]) -> Array:
        at = places[..., 0]
        inside = at < self.slots
        page = jnp.take_along_axis(self.lists, jnp.where(inside, at // self.page, 0), axis=1)
        page = jnp.where(inside & (page >= 0), page, store.shape[0])
        return store.at[page, at % self.page].set(new, mode="drop")

    def _released(self) -> "Paged":
        """The cache without the pages that lie behind its texts."""
        n = jnp.arange(self.lists.shape[1], dtype=jnp.int32)
        left = (self.lists >= 0) & (n * self.page >= self.length[:, None])
        back = _count(self.lists, left, self.readers)
        return replace(self, lists=jnp.where(left, -1, self.lists), readers=self.readers - back)


def _count(lists: Array, which: Array, readers: Array) -> Array:
    """How often each page stands at a place of `lists` that counts."""
    return jnp.zeros_like(readers).at[jnp.where(which, lists, readers.size)].add(1, mode="drop")


def _allocate(
    readers: Int[Array, " P"], wanted: Bool[Array, "B n"]
) -> tuple[Int[Array, "B n"], Int[Array, " P"], Bool[Array, "B n"]]:
    """(a free page for each place that wants one, or -1; readers; whether it got one)."""
    rank = jnp.cumsum(wanted.reshape(-1)).reshape(wanted.shape)  # from 1
    free = jnp.cumsum(readers == 0)
    page = jnp.searchsorted(free, rank).astype(jnp.int32)
    found = page < readers.size
    page = jnp.where(wanted & found, page, -1)
    return page, readers + _count(page, page >= 0, readers), found | ~wanted
