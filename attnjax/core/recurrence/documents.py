"""Packed documents in a recurrence: several texts in one row, none of which reads another."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from attnjax.core.scan.diagonal import linear_scan
from attnjax.core.sharding import LOCAL, SequenceSharding, sharding_of
from attnjax.typing import Array, Bool, Int

Documents = Int[Array, "*B T"]


class Packed(NamedTuple):
    """What ids of documents say of each token, and of the state after the last."""

    real: Bool[Array, "B T"]  # no padding
    starts: Bool[Array, "B T"]  # the first of a document
    current: Int[Array, "B T"]  # the id of the last real token so far; -1: there was none
    last: Int[Array, " B"]  # that after all tokens

    def without_padding(self, x: Array) -> Array:
        """x (B,T,...) with zeros for padding; numbers (N,) of each head are given to its tokens."""
        x = jnp.asarray(x)
        if x.ndim == 1:
            x = jnp.broadcast_to(x, (*self.real.shape, x.shape[0]))
        return jnp.where(_like(self.real, x), x, jnp.zeros((), x.dtype))

    def without_first(self, x: Array) -> Array:
        """x (B,T,...) with zeros for the first token of a document."""
        return jnp.where(_like(self.starts, x), jnp.zeros((), x.dtype), x)

    @property
    def goes_on(self) -> Bool[Array, "B T"]:
        """Whether what a state brings is of a token's document: none has started yet."""
        return jnp.cumsum(self.starts, axis=1) == 0

    @property
    def index(self) -> Int[Array, "B T"]:
        """The place of each token in its document, of a row without a state and padding."""
        places = jnp.arange(self.starts.shape[1])
        return places - lax.cummax(jnp.where(self.starts, places, 0), axis=1)

    def of_each(self, parts: int) -> "Packed":
        """Of tokens in several parts, their writes, say: the first starts what they start."""
        if parts == 1:
            return self
        first = jnp.arange(parts) == 0
        each = lambda x: jnp.repeat(x, parts, axis=1)
        starts = (self.starts[..., None] & first).reshape(each(self.starts).shape)
        return Packed(each(self.real), starts, each(self.current), self.last)


def _like(flags: Array, x: Array) -> Array:
    """(B,T) with the axes of x (B,T,...)."""
    return flags.reshape(*flags.shape, *(1,) * (x.ndim - 2))


def sums_so_far(
    x: Array, before: Array, documents: Packed | None = None, impl: Any = None
) -> tuple[Array, Array]:
    """Sums of x (B,T,...) over the tokens of a document up to each, and the one after all tokens.

    `before` (B,...) is what a state brings; padding adds nothing.  With the `impl` of an op sums
    are over the whole text, on whatever devices it is.
    """
    sharding = sharding_of(impl)
    if documents is None:
        every = jnp.cumsum(sharding.gathered(x, 1), axis=1) + before[:, None]
    else:
        kept = _like(1 - documents.starts.astype(x.dtype), x)
        kept, x = (sharding.gathered(a, 1) for a in (kept, documents.without_padding(x)))
        every = linear_scan(kept, x, before, axis=1)
    return sharding.own(every, 1), every[:, -1]


def packed(
    documents: Documents | None,
    shape: tuple[int, ...],
    before: Array | None = None,
    sharding: SequenceSharding = LOCAL,
) -> Packed | None:
    """What ids (T,) or (B,T) say, None without them; `before` (B,) is the document of the state.

    Tokens of a document are behind each other.  Negative ids are padding, anywhere.  The first
    document goes on from a state, unless that has ended with another id.

    Raises ValueError where ids are not of the tokens' `shape` (B,T), and for a state of a document
    where there are none, TypeError where ids are no integers.
    """
    if documents is None:
        if before is not None:
            told = "state is one of a call with documents"
            raise ValueError(f"linear_attend: {told}, expected them here")
        return None
    ids = jnp.asarray(documents)
    if ids.shape not in (shape, shape[1:]):
        told = f"documents has shape {ids.shape}, expected (T,) or (B,T) = {shape}"
        raise ValueError(f"linear_attend: {told}")
    ids = jnp.broadcast_to(ids, shape)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"linear_attend: documents has dtype {ids.dtype}, expected integers")
    # -1: no document has been there; the first real token then starts none, and keeps the state
    first = jnp.full(shape[:1], -1, ids.dtype) if before is None else before.astype(ids.dtype)
    every = jnp.concatenate([first[:, None], sharding.gathered(ids, 1)], axis=1)
    place = jnp.where(every >= 0, jnp.arange(every.shape[1])[None], 0)
    current = jnp.take_along_axis(every, lax.cummax(place, axis=1), axis=1)
    starts = (current[:, 1:] != current[:, :-1]) & (current[:, :-1] >= 0)
    own = lambda x: sharding.own(x, 1)
    return Packed(ids >= 0, own(starts), own(current[:, 1:]), current[:, -1])


class Compact(NamedTuple):
    """The real tokens of a row in front of all padding: so a lag counts tokens, not places."""

    of: Packed  # of the tokens in this order
    ids: Int[Array, "B T"]  # -1 for padding, which is behind
    order: Int[Array, "B T"]  # which token comes where
    place: Int[Array, "B T"]  # where each token went
    count: Int[Array, " B"]  # how many real ones there are

    def together(self, x: Array) -> Array:
        """x (B,T,...) in this order, zeros behind."""
        return self.of.without_padding(_taken(x, self.order))

    def apart(self, x: Array) -> Array:
        """What became of tokens, (B,T,...), in their own places; zeros for padding."""
        real = self.place < self.count[:, None]
        return jnp.where(_like(real, x), _taken(x, self.place), jnp.zeros((), x.dtype))

    def last(self, x: Array, n: int) -> Array:
        """The n real ones behind which padding begins, of x (B,n+T,...): n before, and tokens."""
        return _taken(x, self.count[:, None] + jnp.arange(n))

    def at_the_end(self, x: Array) -> Array:
        """x (B,T,...) of this order with all padding in front."""
        T = x.shape[1]
        return _taken(x, (jnp.arange(T) + self.count[:, None]) % T)


def compact(
    documents: Documents | None, shape: tuple[int, ...], before: Array | None = None
) -> Compact | None:
    """Of ids, shape and a state's document as `packed` takes them; None without ids."""
    given = packed(documents, shape, before)
    if given is None:
        return None
    order = jnp.argsort(~given.real, axis=1, stable=True)
    ids = _taken(jnp.where(given.real, given.current, -1), order)
    place = jnp.argsort(order, axis=1)
    of = packed(ids, shape, before)
    assert of is not None
    return Compact(of, ids, order, place, given.real.sum(1))


def _taken(x: Array, at: Int[Array, "B n"]) -> Array:
    return jnp.take_along_axis(x, _like(at, x), axis=1)
