"""Caches as values: keys and values of the tokens before, in slots that know their positions.

    cache = Dense.empty(B, 4096, K, H)      # immutable; shapes never change
    cache = cache.append(k, v)              # k (B,T,K,H), v (B,T,K,D): a prompt, a step, drafts
    cache = cache.rewind(length)            # drafts that were refused leave

Every slot says which token it holds, `positions` (B,L,X), -1 for none, so masks and mods see where
tokens stand in the text, whichever were dropped or overwritten.  X is 1, or K where each head of
keys holds tokens of its own.  Examples have lengths of their own.

A cache that cannot take a token raises ValueError; under jit, where it cannot raise, `lost` marks
the example, and what attends to it gives NaN from then on.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer

from attnjax.core import masks
from attnjax.core.dispatch import compiled
from attnjax.core.masks import Mask
from attnjax.core.pairwise.request import StoredKeys
from attnjax.core.sharding import on_any_mesh
from attnjax.decode.codecs import Codec, Plain
from attnjax.typing import Array, Float, Int, Leaf, TokenK, TokenV

Count = int | Int[Array, " B"] | None
Kind = TypeVar("Kind", bound="Cache")  # not Self, which checkers of types at run time refuse

FIELDS = ["k", "v", "bad", "extra", "positions", "votes", "start", "length", "lost"]


@dataclass(frozen=True)
class Cache:
    """What every cache has; see `Dense`, `Window` and `Paged` for which slot a token goes to.

    k, v       what the codec stores, trees of arrays (B,K,L,...): products read heads one by one
    bad        (B,K,L,1) whether k or v held a NaN or infinity, in place of which zeros are stored
    extra      more numbers of each token, arrays (B,K,L,...): operands of mods, see `riders`
    positions  (B,L,X) int32, -1 where a slot is empty
    votes      (B,L,X) float32, how much each slot is worth, see `policies`
    start      (B,) where the tokens of the last `append` begin
    length     (B,) how many tokens there have been: the position of the next one
    lost       (B,) whether a token found no slot
    """

    k: Any
    v: Any
    bad: Leaf
    extra: tuple[Any, ...]
    positions: Leaf
    votes: Leaf
    start: Leaf
    length: Leaf
    lost: Leaf
    codec: Codec

    kept: ClassVar[str] = "more slots, or a policy that drops tokens"

    @property
    def slots(self) -> int:
        """L, how many tokens there is room for."""
        return self.positions.shape[1]

    @property
    def heads(self) -> int:
        """X, how many heads hold tokens of their own: 1 or K."""
        return self.positions.shape[2]

    @property
    def k_heads(self) -> int:
        """K, how many heads of keys there are."""
        return self.bad.shape[1]

    @property
    def mask(self) -> Mask:
        """What may be seen of the cache besides what the caller's mask says."""
        return masks.everything

    def stored(self) -> StoredKeys:
        """Keys and values of all slots, decoded, as products read them."""
        k, v = (self.codec.decode(jax.tree.map(self._by_text, x)) for x in (self.k, self.v))
        return StoredKeys(k, v, jnp.where(self._by_text(self.bad)[..., 0], jnp.nan, 0.0))

    def read(self) -> tuple[Float[Array, "B L K H"], Float[Array, "B L K D"]]:
        """Keys and values of all slots, decoded; NaN for those that held one or an infinity."""
        keys = self.stored()
        of_text = lambda x: jnp.swapaxes(x + keys.poison[..., None].astype(x.dtype), 1, 2)
        return of_text(keys.k), of_text(keys.v)

    def riders(self) -> tuple[Array, ...]:
        """`extra` of all slots, (B,L,K,...): operands of mods."""
        return tuple(jnp.swapaxes(self._by_text(x), 1, 2) for x in self.extra)

    def upcoming(self, T: int) -> Int[Array, "B T"]:
        """The positions of the next T tokens, of which rotary keys need to know."""
        return self.length[:, None] + jnp.arange(T, dtype=jnp.int32)

    def append(
        self: Kind, k: TokenK, v: TokenV, extra: tuple[Array, ...] = (), *, count: Count = None
    ) -> Kind:
        """The cache with T more tokens, of which the first `count` of each example are there.

        count is (B,) or a number, all T if None: prompts of several lengths are padded behind.
        Raises ValueError for shapes that do not fit and for a cache that is full.
        """
        self._check(k, v, extra)
        B, T = k.shape[:2]
        count = jnp.broadcast_to(jnp.asarray(T if count is None else count, jnp.int32), (B,))
        added = _append(self, k, v, extra, count)
        if not _traced(self, added) and bool((added.lost & ~self.lost).any()):
            held = int((self.positions >= 0).sum(1).max())
            raise ValueError(
                f"{type(self).__name__}.append: T = {T} tokens, but {held} of the L = {self.slots} "
                f"slots are held; expected {self.kept}"
            )
        return added

    def rewind(self: Kind, length: int | Int[Array, " B"]) -> Kind:
        """The cache as if only `length` tokens of each example had come, a number or (B,)."""
        return _rewind(self, jnp.broadcast_to(jnp.asarray(length, jnp.int32), self.length.shape))

    # what a kind of cache does in its own way

    def _places(self, at: Int[Array, "B T"]) -> Int[Array, "B T X"]:
        """The slot of each new token; L, or more, where there is none."""
        raise NotImplementedError

    def _reserved(self: Kind, length: Int[Array, " B"]) -> Kind:
        """The cache, ready for texts of these lengths."""
        return self

    def _released(self: Kind) -> Kind:
        """The cache without what lies behind its texts."""
        return self

    def _put(self, store: Array, new: Array, places: Int[Array, "B T X"]) -> Array:
        """`new` (B,T,K,...) in the slots of each head; a place beyond L is none."""
        examples = jnp.arange(store.shape[0])[:, None]
        if self.heads == 1:
            return store.at[examples, :, places[..., 0]].set(new, mode="drop")
        heads = jnp.arange(self.heads)
        return store.at[examples[..., None], heads, places].set(new, mode="drop")

    def _by_text(self, x: Array) -> Array:
        """What is stored of all slots, (B,K,L,...)."""
        return x

    def _check(self, k: Array, v: Array, extra: tuple[Array, ...]) -> None:
        name, B, T = type(self).__name__, self.length.shape[0], k.shape[1]
        of_tokens = lambda x: (B, T, *x.shape[2:])
        read = jax.eval_shape(self.read)
        for letters, x, own in zip(("k (B,T,K,H)", "v (B,T,K,D)"), (k, v), read, strict=True):
            if x.shape != (want := of_tokens(own)):
                raise ValueError(f"{name}.append: {letters} has shape {x.shape}, expected {want}")
        riders = jax.eval_shape(self.riders)
        given, expected = [x.shape for x in extra], [of_tokens(x) for x in riders]
        if given != expected:
            raise ValueError(f"{name}.append: extra has shapes {given}, expected {expected}")


@on_any_mesh
@compiled()
def _append(cache: Any, k: Array, v: Array, extra: tuple[Array, ...], count: Array) -> Any:
    at = cache.upcoming(k.shape[1])
    length = cache.length + count
    real = (at < length[:, None])[..., None]
    cache, begin = cache._reserved(length), cache.length
    places = cache._places(at)
    lost = cache.lost | (real & (places >= cache.slots)).any((1, 2))
    places = jnp.where(real, places, cache.slots)
    store = lambda old, new: cache._put(old, new.astype(old.dtype), places)
    bad = _bad(cache.codec, k) | _bad(cache.codec, v)
    encoded = lambda x: cache.codec.encode(jnp.where(bad, jnp.zeros((), x.dtype), x))
    return replace(
        cache,
        k=jax.tree.map(store, cache.k, encoded(k)),
        v=jax.tree.map(store, cache.v, encoded(v)),
        bad=store(cache.bad, bad),
        extra=jax.tree.map(store, cache.extra, extra),
        positions=_mark(cache.positions, jnp.broadcast_to(at[..., None], places.shape), places),
        votes=_mark(cache.votes, jnp.zeros(places.shape, cache.votes.dtype), places),
        start=begin,
        length=length,
        lost=lost,
    )


def _bad(codec: Codec, x: Array) -> Array:
    """Whether any number of x (B,T,K,H) is none, or none once it is stored: (B,T,K,1)."""
    return ~jnp.isfinite(codec.decode(codec.encode(x))).all(-1, keepdims=True)


@on_any_mesh
@compiled()
def _rewind(cache: Any, length: Array) -> Any:
    gone = cache.positions >= length[:, None, None]
    left = replace(
        cache,
        positions=jnp.where(gone, -1, cache.positions),
        start=jnp.minimum(cache.start, length),
        length=jnp.minimum(cache.length, length),
    )
    return left._released()


def _mark(x: Array, new: Array, places: Int[Array, "B T X"]) -> Array:
    """(B,L,X) with (B,T,X) in the slots of each head; a place beyond L is none."""
    B, _, X = x.shape
    examples, heads = jnp.arange(B)[:, None, None], jnp.arange(X)
    return x.at[examples, places, heads].set(new, mode="drop")


def _traced(*caches: Cache) -> bool:
    return any(isinstance(cache.lost, Tracer) for cache in caches)


def empty_fields(
    B: int,
    length: int,
    K: int,
    H: int,
    *,
    D: int | None = None,
    heads: int = 1,
    codec: Codec | None = None,
    extra: tuple[tuple[int, ...], ...] = (),
) -> dict[str, Any]:
    """The fields of a cache of `length` slots without tokens; sizes as in `Dense.empty`."""
    if heads not in (1, K):
        raise ValueError(f"heads: got {heads}, expected 1, or K = {K}")
    if length < 1:
        raise ValueError(f"length: got {length}, expected at least 1 slot")
    codec = Plain() if codec is None else codec
    none = jnp.zeros((B,), jnp.int32)
    return {
        "k": codec.encode(jnp.zeros((B, K, length, H))),
        "v": codec.encode(jnp.zeros((B, K, length, H if D is None else D))),
        "bad": jnp.zeros((B, K, length, 1), bool),
        "extra": tuple(jnp.zeros((B, K, length, *shape)) for shape in extra),
        "positions": jnp.full((B, length, heads), -1, jnp.int32),
        "votes": jnp.zeros((B, length, heads)),
        "start": none,
        "length": none,
        "lost": jnp.zeros((B,), bool),
        "codec": codec,
    }
