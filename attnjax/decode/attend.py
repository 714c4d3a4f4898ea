"""Attention of the newest tokens over a cache: a step, drafts, or a part of a prompt.

    cache = cache.append(k, v)
    out = attend_cache(q, cache, mods=(mods.alibi(slopes),), mask=masks.causal & masks.window(255))

equals the same rows of attention over the whole text, of which the cache holds what can be seen.
All terms of `attend` apply.  Operands of mods that belong to keys are those of the slots, (B,L,K):
`cache.riders()`; those of pairs (B,N,T,L).  Mods that look at groups of neighboring keys need slots
in the order of the text, from which nothing was dropped.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp

from attnjax.core import masks, normalizers
from attnjax.core.blocks.selection import Selection
from attnjax.core.dispatch import compiled
from attnjax.core.masks import Mask
from attnjax.core.mods import Mod
from attnjax.core.normalizers import Normalizer
from attnjax.core.pairwise import dense
from attnjax.core.pairwise.attend import Impl, choose, choose_state, join_states
from attnjax.core.pairwise.measure import measure
from attnjax.core.pairwise.request import Request, StoredKeys, finish, prepare_stored
from attnjax.core.sharding import on_any_mesh
from attnjax.decode.caches import Cache
from attnjax.typing import Array, Float, Int, Out, Q

Turn = Callable[[Array, Array], Array]


class Terms(TypedDict, total=False):
    """What there is to say about an attention besides q and the cache, as `attend_cache` takes."""

    mods: tuple[Mod, ...]
    mask: Mask
    normalizer: Normalizer
    scale: float | Array | None
    turn: Turn | None
    impl: Impl


def attend_cache(
    q: Q,
    cache: "Cache | Fork",
    *,
    mods: tuple[Mod, ...] = (),
    mask: Mask = masks.causal,
    normalizer: Normalizer = normalizers.softmax,
    scale: float | Array | None = None,
    turn: Turn | None = None,
    impl: Impl = None,
) -> Out:
    """Attention of q (B,T,N,H), the queries of the T tokens appended last, over the cache.

    mask  says all that may be seen, `causal` included; a `Window` shows less
    turn  (x (B,T,N,H), positions (B,T)) -> x, such as `rotary`, of queries and of keys as they are
          read; None where the keys that are stored have been turned before
    The other terms are those of `attend`, and so are errors and NaN.  An example of which a token
    was lost gives NaN.
    """
    terms = {"mods": mods, "mask": mask, "normalizer": normalizer, "scale": scale}
    part = functools.partial(_attend_fork if isinstance(cache, Fork) else _attend, q, cache, terms)
    return part(turn=turn, impl=impl)


def masses(q: Q, cache: Cache, **terms: Unpack[Terms]) -> Float[Array, "B L X"]:
    """The weight that each slot is given by the queries and heads that read it, all together.

    Terms as of `attend_cache`.  Without the matrix of weights where that is large, as
    `measure(of="key_mass")`.  Queries behind an example's own count for nothing.
    """
    more: dict[str, Any] = {"mask": masks.causal, **terms}
    turn, impl = more.pop("turn", None), more.pop("impl", None)
    return _masses(q, cache, more, turn=turn, impl=impl)


_DENSE = 1 << 22  # weights of all heads that may exist at once


# ---------------------------------------------------------------------------------- one cache


class _Call(NamedTuple):
    """Queries, keys and values, and everything else that `attend` takes."""

    q: Array
    keys: StoredKeys
    terms: dict[str, Any]


@on_any_mesh
@compiled("turn", "impl")
def _attend(q: Q, cache: Cache, terms: dict[str, Any], *, turn: Turn | None, impl: Impl) -> Out:
    request = _request(q, _newest(q, cache), cache, terms, turn)
    out = finish(request, choose("attend_cache", impl, request).run(request))
    return _lost_is_nan(out, cache.lost)


@on_any_mesh
@compiled("turn", "impl")
def _masses(
    q: Q, cache: Cache, terms: dict[str, Any], *, turn: Turn | None, impl: Impl
) -> Float[Array, "B L X"]:
    own = terms | {"mask": terms["mask"] & masks.lengths(q=cache.length)}
    call = _call(q, _newest(q, cache), cache, own, turn)
    B, T, N, _ = q.shape
    if impl is None and B * N * T * cache.slots <= _DENSE:
        request = prepare_stored(call.q, call.keys, **call.terms)
        seen = dense.weights(request).sum(2).astype(q.dtype)
    else:
        k = jnp.swapaxes(call.keys.k + call.keys.poison[..., None], 1, 2).astype(q.dtype)
        seen = measure(call.q, k, of="key_mass", impl=impl, **call.terms)["key_mass"]
    return seen.reshape(B, cache.heads, -1, cache.slots).sum(2).swapaxes(1, 2)


def _newest(q: Q, cache: Cache) -> Int[Array, "B T"]:
    """Where the tokens appended last stand."""
    return cache.start[:, None] + jnp.arange(q.shape[1], dtype=jnp.int32)


def _lost_is_nan(out: Out, lost: Array) -> Out:
    return jnp.where(lost[:, None, None, None], jnp.asarray(jnp.nan, out.dtype), out)


def _there(q_position: Any, k_position: Any) -> Any:
    """Whether a slot holds a token."""
    return k_position >= 0


_HELD = masks.fn(_there)


def _request(
    q: Q, at: Int[Array, "B T"], cache: Cache, terms: dict[str, Any], turn: Turn | None
) -> Request:
    """Of queries at positions over the cache."""
    call = _call(q, at, cache, terms, turn)
    return prepare_stored(call.q, call.keys, **call.terms)


def _call(
    q: Q, at: Int[Array, "B T"], cache: Cache, terms: dict[str, Any], turn: Turn | None
) -> _Call:
    """Queries at positions, and keys.

    Where heads hold tokens of their own, each selects the one block of all slots: so positions may
    differ by head.
    """
    (B, T), X, keys = at.shape, cache.heads, cache.stored()
    if turn is not None:
        q = turn(q, at).astype(q.dtype)
        k = jnp.swapaxes(keys.k, 1, 2).astype(q.dtype)
        k = _turned(turn, k, jnp.maximum(cache.positions, 0)).astype(q.dtype)
        keys = replace(keys, k=jnp.swapaxes(k, 1, 2))
    mask = terms["mask"] & cache.mask & _HELD
    if X == 1:
        places = {"q_positions": at, "k_positions": cache.positions[..., 0]}
        return _Call(q, keys, terms | places | {"mask": mask})
    every = jnp.zeros((B, 1, X, 1), jnp.int32)
    blocks = Selection(every, jnp.ones(every.shape, bool), block_q=T, block_k=cache.slots)
    of_heads = jnp.broadcast_to(at[..., None], (B, T, X))
    places = {"q_positions": of_heads, "k_positions": cache.positions, "blocks": blocks}
    return _Call(q, keys, terms | places | {"mask": mask})


def _turned(turn: Turn, k: Array, at: Int[Array, "B L X"]) -> Array:
    """Keys turned by their positions, those of each head by its own."""
    if at.shape[2] == 1:
        return turn(k, at[..., 0])
    alone = lambda x, at: turn(x[:, :, None], at)[:, :, 0]
    return jax.vmap(alone, in_axes=2, out_axes=2)(k, at)


def renumbered(cache: Cache) -> Cache:
    """A view of the cache in which positions count the tokens that are held, 0, 1, 2, ...

    As StreamingLLM numbers them: with `turn=rotary` no distance exceeds the cache.  To attend to,
    not to append to.
    """
    at = jnp.where(cache.positions < 0, jnp.iinfo(jnp.int32).max, cache.positions)
    rank = jnp.argsort(jnp.argsort(at, axis=1), axis=1).astype(jnp.int32)
    held = (cache.positions[..., 0] >= 0).sum(1).astype(jnp.int32)
    return replace(
        cache,
        positions=jnp.where(cache.positions < 0, -1, rank),
        start=held - (cache.length - cache.start),
        length=held,
    )


# ----------------------------------------------------------------------- a prefix that is shared


@functools.partial(jax.tree_util.register_dataclass, data_fields=["prefix", "own"], meta_fields=[])
@dataclass(frozen=True)
class Fork:
    """Texts that begin alike: a cache of their prefix, once, and one of what each has of its own.

    Made by `fork`.  The prefix's keys are read once for all texts that share it, and the two parts
    join by their sums: any normalizer of one pass.
    """

    prefix: Cache
    own: Cache

    @property
    def copies(self) -> int:
        """How many texts share each prefix."""
        return self.own.length.shape[0] // self.prefix.length.shape[0]

    @property
    def length(self) -> Int[Array, " B"]:
        return self.own.length

    def upcoming(self, T: int) -> Int[Array, "B T"]:
        """The positions of the next T tokens."""
        return self.own.upcoming(T)

    def append(self, k: Array, v: Array, extra: tuple[Array, ...] = (), **more: Any) -> "Fork":
        """The texts with T more tokens, as `Cache.append`."""
        return replace(self, own=self.own.append(k, v, extra, **more))

    def rewind(self, length: int | Int[Array, " B"]) -> "Fork":
        """As `Cache.rewind`, not into the prefix."""
        return replace(self, own=self.own.rewind(length))


def fork(prefix: Cache, own: Cache) -> Fork:
    """Texts that go on from a prefix: `own` is empty, for n texts of each example of the prefix.

    Texts n b .. n b + n - 1 go on from example b.
    """
    of, n = prefix.length.shape[0], own.length.shape[0]
    if n % of:
        raise ValueError(f"fork: own has B = {n} examples, expected a multiple of prefix's {of}")
    begin = jnp.repeat(prefix.length, n // of)
    return Fork(prefix, replace(own, start=begin, length=begin))


@on_any_mesh
@compiled("turn", "impl")
def _attend_fork(q: Q, cache: Fork, terms: dict[str, Any], *, turn: Turn | None, impl: Impl) -> Out:
    (B, T, N, H), n = q.shape, cache.copies
    at = _newest(q, cache.own)
    own = _request(q, at, cache.own, terms, turn)
    # the queries of all texts of a prefix are rows of one product
    rows, row_at = q.reshape(B // n, n * T, N, H), at.reshape(B // n, n * T)
    told = terms | {"mods": tuple(_as_rows(m, n * T) for m in terms["mods"])}
    prefix = _request(rows, row_at, cache.prefix, told, turn)
    parts = [choose_state("attend_cache", impl, part).state(part) for part in (prefix, own)]
    by_text = lambda x: x.reshape(B // n, N, n, T, -1).swapaxes(1, 2).reshape(B, N, T, -1)
    out = join_states(jax.tree.map(by_text, parts[0]), parts[1], normalizer=terms["normalizer"])
    lost = cache.own.lost | jnp.repeat(cache.prefix.lost, n)
    return _lost_is_nan(out.astype(q.dtype), lost)


def _as_rows(m: Mod, rows: int) -> Mod:
    """A mod with its operands of queries laid out for so many of each prefix."""

    def laid(kind: str, x: Any) -> Any:
        side = kind.split("_")[0]
        if side in ("pair", "key"):
            raise ValueError(
                f"Fork: a mod has an operand of kind {kind}, expected none: prefix and texts have "
                "different keys"
            )
        if side != "query":
            return x
        if jnp.ndim(x) == 1:
            return jnp.tile(x, rows // len(x))
        return x.reshape(-1, rows, *x.shape[2:])

    return replace(m, operands=tuple(map(laid, m.kinds, m.operands)))
