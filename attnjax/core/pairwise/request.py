"""One call of the pairwise engine, checked and laid out: what every implementation receives."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from attnjax.core.blocks.selection import Selection
from attnjax.core.dropout import Dropout, Keep
from attnjax.core.masks import Everything, Mask, Side, everything, for_call, of_shards
from attnjax.core.mods import Mod, Poison, RelativeValues, group_of
from attnjax.core.normalizers import Normalizer, softmax
from attnjax.core.numerics import clean, working_dtype
from attnjax.core.pairwise import relative
from attnjax.core.pairwise.operands import (
    Places,
    Shape,
    Tile,
    cut_to_tile,
    lay_out,
    span,
    token_axes,
)
from attnjax.core.sharding import LOCAL, SequenceSharding
from attnjax.typing import Array, Leaf


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "q", "k", "v", "scale", "v_table", "mods", "normalizer", "mask",
        "q_positions", "k_positions", "q_poison", "k_poison", "selection", "dropout",
    ],
    meta_fields=["shape", "dtype"],
)  # fmt: skip
@dataclass(frozen=True)
class Request:
    """Arguments of `attend` in the layout of the tiles, in the working dtype.

    q          (B,N,T,H)       k (B,K,S,H)       v (B,K,S,D)
    scale      (), what q is yet to be multiplied by; None: q has been, in the working dtype
    v_table    (R,D), the relative part of the values, or None
    dtype      that of the caller's q, k and v, and of the result
    q_poison   (B,N,T,1), k_poison (B,N,1,S): zero, or NaN where q, k or v held a NaN or an
               infinity, or an operand of the query or key a NaN.  The arrays themselves hold zeros
               there.  Poison is added to scores before the mask, so that a bad key spoils exactly
               the rows that may see it: 0 * NaN in a matrix product would spoil the others, too.
    q_positions, k_positions   (T,) and (S,); or those of each example, and under a selection of
               each head that selects, (B,X,T) and (B,X,S), X = 1 without one
    selection  the blocks of keys that each block of queries attends to, laid out (B,X,U,M), or
               None: all of them
    dropout    which weights count in the sum of values, or None: all
    """

    q: Leaf
    k: Leaf
    v: Leaf
    scale: Leaf | None
    v_table: Leaf | None
    mods: tuple[Mod, ...]
    normalizer: Normalizer
    mask: Mask
    q_positions: Leaf | None
    k_positions: Leaf | None
    q_poison: Leaf
    k_poison: Leaf
    selection: Selection | None
    dropout: Keep | None
    shape: Shape
    dtype: jnp.dtype

    @property
    def blocks(self) -> Selection:
        """The selection of a call that has one."""
        if self.selection is None:
            raise ValueError("attend: the call selects no blocks")
        return self.selection

    @property
    def differs_by_example(self) -> bool:
        """Whether examples have positions of their own."""
        return any(x is not None and x.ndim == 3 for x in (self.q_positions, self.k_positions))

    def scaled(self) -> "Request":
        """The call with q multiplied by scale."""
        return self if self.scale is None else replace(self, q=self.q * self.scale, scale=None)

    @property
    def whole(self) -> Tile:
        """The tile that is the whole matrix."""
        z = self.shape
        return Tile(
            span(0, z.T, self.q_positions),
            span(0, z.S, self.k_positions),
        )


OnTokens = Callable[[Array, int], Array]  # (array, the axis along which its tokens are) -> array


def along_tokens(request: Request, on_q: OnTokens, on_k: OnTokens) -> Request:
    """The call with every array along T taken through on_q(x, axis), along S through on_k.

    Arrays that are None stay so; `shape`, the mask and the selection stay as they are.
    """

    def operand(kind: str, x: Array) -> Array:
        for axis, on in zip(token_axes(kind, x), (on_q, on_k), strict=True):
            x = x if axis is None else on(x, axis)
        return x

    at = lambda on, x, axis: None if x is None else on(x, axis % x.ndim)
    return replace(
        request,
        q=at(on_q, request.q, 2),
        k=at(on_k, request.k, 2),
        v=at(on_k, request.v, 2),
        mods=tuple(
            replace(m, operands=tuple(map(operand, m.kinds, m.operands))) for m in request.mods
        ),
        q_positions=at(on_q, request.q_positions, -1),
        k_positions=at(on_k, request.k_positions, -1),
        q_poison=at(on_q, request.q_poison, 2),
        k_poison=at(on_k, request.k_poison, 3),
    )


# Products of a tile.  The query heads that share a key/value head become rows of one product.


def _by_group(x: Array, K: int) -> Array:
    """(B,N,t,...) -> (B,K,G*t,...)."""
    B, N, t, width = x.shape
    return x.reshape(B, K, N // K * t, width)


def product(q: Array, k: Array) -> Array:
    """q.k for a tile: (B,N,t,H), (B,K,s,H) -> (B,N,t,s)."""
    rows = _by_group(q, k.shape[1])
    out = jnp.einsum("BKtH,BKsH->BKts", rows, k, precision=lax.Precision.HIGHEST)
    return out.reshape(*q.shape[:-1], k.shape[-2])


def weighted_sum(w: Array, v: Array) -> Array:
    """sum_s w v for a tile: (B,N,t,s), (B,K,s,D) -> (B,N,t,D)."""
    rows = _by_group(w, v.shape[1])
    out = jnp.einsum("BKts,BKsD->BKtD", rows, v, precision=lax.Precision.HIGHEST)
    return out.reshape(*w.shape[:-1], v.shape[-1])


def transposed_product(xT: Array, w: Array, K: int) -> Array:
    """sum over t and a group's heads of x w: (B,N,H,t), (B,N,t,s) -> (B,K,H,s)."""
    out = jnp.einsum("BNHt,BNts->BNHs", xT, w, precision=lax.Precision.HIGHEST)
    B, N, H, s = out.shape
    return out if N == K else out.reshape(B, K, N // K, H, s).sum(axis=2)


def modify(
    mods: tuple[Mod, ...],
    s: Array,
    operands: Sequence[tuple[Array, ...]],
    tile: Tile,
    ok: Array | None,
) -> Array:
    """The scores after all mods, in order; `operands` are already cut to the tile."""
    for mod, mine in zip(mods, operands, strict=True):
        s = mod(s, mine, tile, ok)
    return s


def cut_operands(mods: tuple[Mod, ...], tile: Tile) -> tuple[tuple[Array, ...], ...]:
    return tuple(
        tuple(cut_to_tile(kind, x, tile) for kind, x in zip(mod.kinds, mod.operands, strict=True))
        for mod in mods
    )


def weighted_values(w: Array, v: Array, v_table: Array | None, tile: Tile) -> Array:
    """sum_s w v (plus the relative part): (B,N,t,s), (B,K,s,D) -> (B,N,t,D)."""
    out = weighted_sum(w, v)
    return out if v_table is None else out + relative.sum_by_distance(w, v_table, tile)


def allowed(mask: Mask, tile: Tile) -> Array | None:
    """The mask on a tile, broadcastable to (B,N,t,s); None where all of any tile is allowed."""
    if isinstance(mask, Everything):
        return None
    q, k = tile.q, tile.k
    rows, columns = (q.places, k.places) if mask.by_row else (q.positions, k.positions)
    m = jnp.asarray(mask.allowed(rows[:, None], columns[None, :]))
    return m if m.ndim == 4 else m[None, None]


# ------------------------------------------------------------------------------------- checks


def value_heads(N: int, K: int) -> list[int]:
    """How many heads values may have for N query and K key heads: multiples of K that divide N."""
    return [n for n in range(K, N + 1, K) if N % n == 0]


def check_qkv(engine: str, q: Array, k: Array, v: Array) -> Shape:
    """The sizes of the letters; raises, in the engine's name, where they disagree.

    Values have K heads, or any multiple of K that divides N.
    """
    for name, letters, x in (("q", "B,T,N,H", q), ("k", "B,S,K,H", k), ("v", "B,S,K,D", v)):
        if x.ndim != 4:
            raise ValueError(f"{engine}: {name} has shape {x.shape}, expected rank 4, ({letters})")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"{engine}: {name} has dtype {x.dtype}, expected a floating-point dtype"
            )
        if x.dtype.itemsize < 2:
            raise TypeError(
                f"{engine}: {name} has dtype {x.dtype}, expected float16, bfloat16, float32 or "
                "float64, to which it has to be cast, with its scale, first"
            )
    B, T, N, H = q.shape
    _, S, K, _ = k.shape
    if k.shape[0] != B or v.shape[0] != B:
        raise ValueError(
            f"{engine}: q, k, v have batch sizes B = {B}, {k.shape[0]}, {v.shape[0]}, expected one"
        )
    if v.shape[1] != S:
        raise ValueError(f"{engine}: v has length S = {v.shape[1]}, expected k's S = {S}")
    if k.shape[3] != H:
        raise ValueError(f"{engine}: k has head width H = {k.shape[3]}, expected q's H = {H}")
    if T == 0 or S == 0:
        raise ValueError(f"{engine}: T = {T} and S = {S}, expected both to be at least 1")
    if K == 0 or N % K:
        raise ValueError(f"{engine}: q has N = {N} heads, expected a multiple of k's K = {K}")
    if v.shape[2] not in value_heads(N, K):
        raise ValueError(
            f"{engine}: v has {v.shape[2]} heads, expected k's K = {K}, or a multiple of K that "
            f"divides N = {N}"
        )
    return Shape(B, T, S, N, K, H, v.shape[3])


def _positions(
    name: str, letter: str, x: Array | np.ndarray | None, shape: tuple[int, int], X: int | None
) -> Any:
    """(length,); or (B,length) or under a selection (B,length,X), laid out (B,1|X,length).

    `shape` is (B, length).
    """
    if x is None:
        return None
    B, length = shape
    letters = {f"({letter},)": (length,), f"(B,{letter})": shape}
    if X is not None:
        letters[f"(B,{letter},X)"] = (B, length, X)
    if np.shape(x) not in letters.values():
        told = " or ".join(f"{name} = {size}" for name, size in letters.items())
        raise ValueError(f"attend: {name} has shape {np.shape(x)}, expected {told}")
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"attend: {name} has dtype {x.dtype}, expected integers")
    if np.ndim(x) == 2:
        return x[0] if B == 1 and X is None else x[:, None]
    return x if np.ndim(x) == 1 else jnp.swapaxes(x, 1, 2)


class Terms(TypedDict, total=False):
    """What there is to say about an attention besides q, k, v; `attend` tells what each means."""

    mods: tuple[Mod, ...]
    mask: Mask
    blocks: Selection | None
    normalizer: Normalizer
    scale: float | Array | None
    q_positions: Array | np.ndarray | None
    k_positions: Array | np.ndarray | None


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["k", "v", "poison"], meta_fields=[]
)
@dataclass(frozen=True)
class StoredKeys:
    """Keys and values in the layout of the tiles, cleaned once: what a cache holds.

    k (B,K,S,H), v (B,K,S,D), without NaN and infinities; poison (B,K,S), zero, or NaN where there
    was one.
    """

    k: Leaf
    v: Leaf
    poison: Leaf


def prepare(
    q: Array,
    k: Array,
    v: Array | RelativeValues,
    *,
    dropout: Dropout | None = None,
    sharding: SequenceSharding = LOCAL,
    **terms: Unpack[Terms],
) -> Request:
    """Checks the arguments of `attend`, and lays them out; `sharding` says where tokens are."""
    v_table = None
    if isinstance(v, RelativeValues):
        v, v_table = v.v, v.table
    q, k, v = jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)
    z = check_qkv("attend", q, k, v)
    dtype = working_dtype(_one_dtype(q, k, v))
    (k, k_bad), (v, v_bad) = clean(k), clean(v)
    lay = lambda x: x.astype(dtype).transpose(0, 2, 1, 3)
    poison = _of_keys(k_bad, dtype, z) + _of_keys(v_bad, dtype, z)
    keys = StoredKeys(lay(k), lay(v), poison)
    v_table = None if v_table is None else v_table.astype(dtype)
    request = _request(q, keys, z, dropout, sharding, **terms)
    return _with_key_heads(replace(request, v_table=v_table), v.shape[2])


def prepare_stored(q: Array, keys: StoredKeys, **terms: Unpack[Terms]) -> Request:
    """`prepare` for keys and values that are laid out and clean already: none is copied."""
    (B, K, S, H), D = keys.k.shape, keys.v.shape[3]
    z = check_qkv("attend", q, *(_like(q.dtype, B, S, K, width) for width in (H, D)))
    dtype = working_dtype(q.dtype)
    poison = lay_out("key", jnp.swapaxes(keys.poison, 1, 2).astype(dtype), z)
    laid = StoredKeys(keys.k.astype(dtype), keys.v.astype(dtype), poison)
    return _request(q, laid, z, None, LOCAL, **terms)


def _like(dtype: jnp.dtype, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _request(
    q: Array,
    keys: StoredKeys,
    z: Shape,
    dropout: Dropout | None,
    sharding: SequenceSharding,
    *,
    mods: tuple[Mod, ...] = (),
    mask: Mask = everything,
    blocks: Selection | None = None,
    normalizer: Normalizer = softmax,
    scale: float | Array | None = None,
    q_positions: Array | np.ndarray | None = None,
    k_positions: Array | np.ndarray | None = None,
) -> Request:
    """The call; `keys` are laid out in the working dtype, their poison (B,N,1,S)."""
    dtype = keys.k.dtype
    mods = _checked_mods(mods)
    _check_kinds(mask, blocks, normalizer)
    scale = _checked_scale(scale, z, dtype)
    q_at = _array_of_positions("q_positions", q_positions)
    k_at = _array_of_positions("k_positions", k_positions)
    X = None
    if z.B == 0:  # no examples: nobody selects
        blocks = q_at = k_at = None
    if blocks is not None:
        blocks = blocks.laid_out(z, sharding.columns(z.S), group_of(mods))
        X = blocks.indices.shape[1]
        at = (None if x is None else jnp.asarray(x) for x in (q_at, k_at))
        q_at, k_at = at
    q_at = _positions("q_positions", "T", q_at, (z.B, z.T), X)
    k_at = _positions("k_positions", "S", k_at, (z.B, z.S), X)
    # without a selection no head has an order of its own: (B,length)
    by_example = lambda x: x[:, 0] if X is None and np.ndim(x) == 3 else x
    mask = _mask_of_call(mask, z, sharding, by_example(q_at), by_example(k_at))
    laid, poison = _laid_out(mods, z, dtype, sharding, q_at, k_at)
    given = q.dtype
    q, q_bad = clean(q)
    q = q.astype(dtype) * scale[None, None] if scale.ndim else q.astype(dtype)
    return Request(
        q=q.transpose(0, 2, 1, 3),
        k=keys.k,
        v=keys.v,
        scale=None if scale.ndim else scale,
        v_table=None,
        mods=laid,
        normalizer=normalizer.laid_out(z, dtype),
        mask=mask,
        q_positions=q_at,
        k_positions=k_at,
        q_poison=lay_out("query", q_bad.astype(dtype), z) + poison.query,
        k_poison=keys.poison + poison.key,
        selection=blocks,
        dropout=dropout.laid_out(z) if dropout is not None and dropout.rate else None,
        shape=z,
        dtype=given,
    )


def _of_keys(bad: Array, dtype: jnp.dtype, z: Shape) -> Array:
    """Poison (B,S,heads), laid out for query heads."""
    return lay_out("key", jnp.repeat(bad.astype(dtype), z.N // bad.shape[2], axis=2), z)


def _with_key_heads(request: Request, heads: int) -> Request:
    """The call with as many key heads as values have, each the copy of one that they share."""
    z = request.shape
    if heads == z.K:
        return request
    copies = lambda x: jnp.repeat(x, heads // z.K, axis=1)
    as_selected = lambda x: copies(x) if x.shape[1] == z.K > 1 else x  # (B,X,...)
    of_positions = lambda x: x if x is None or x.ndim == 1 else as_selected(x)
    return replace(
        request,
        k=copies(request.k),
        q_positions=of_positions(request.q_positions),
        k_positions=of_positions(request.k_positions),
        selection=jax.tree.map(as_selected, request.selection),
        shape=replace(z, K=heads),
    )


def _mask_of_call(
    mask: Mask, z: Shape, sharding: SequenceSharding, q_positions: Any, k_positions: Any
) -> Mask:
    """The mask of the call's B, N, T, S and positions, or of the whole text that devices share."""
    if sharding is LOCAL:
        sides = Side("T", z.T, q_positions), Side("S", z.S, k_positions)
        return for_call(mask, z.B, z.N, *sides)
    return of_shards(mask, *sharding.lengths(z.T, z.S), q_positions, k_positions)


def _laid_out(
    mods: tuple[Mod, ...],
    z: Shape,
    dtype: jnp.dtype,
    sharding: SequenceSharding,
    q_positions: Any,
    k_positions: Any,
) -> tuple[tuple[Mod, ...], Poison]:
    """The mods in the layout of the tiles, and which queries and keys have a NaN in an operand."""
    known = lambda x: x if sharding is LOCAL and np.ndim(x) == 1 else None
    at = Places(known(q_positions), known(k_positions))
    each = [m.laid_out(z, dtype, sharding, at) for m in mods]
    none = jnp.zeros((1, 1, 1, 1), dtype)
    query = functools.reduce(jnp.add, (poison.query for _, poison in each), none)
    key = functools.reduce(jnp.add, (poison.key for _, poison in each), none)
    return tuple(m for m, _ in each), Poison(query, key)


def _checked_scale(scale: Any, z: Shape, dtype: jnp.dtype) -> Array:
    """() or (N,1) in the working dtype; 1/sqrt(H) for None."""
    if scale is None:
        return jnp.asarray(z.H**-0.5 if z.H else 1.0, dtype)
    expected = f"expected a number, or an array () or (N,1) = {(z.N, 1)}, one for each head"
    if isinstance(scale, bool) or not (isinstance(scale, int | float) or hasattr(scale, "dtype")):
        raise TypeError(f"attend: scale is {scale!r}, {expected}")
    kind = jnp.result_type(scale)
    if not (jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)):
        raise TypeError(f"attend: scale has dtype {kind}, {expected}")
    if jnp.shape(scale) not in ((), (z.N, 1)):
        raise ValueError(f"attend: scale has shape {jnp.shape(scale)}, {expected}")
    return jnp.asarray(scale, dtype)


def _array_of_positions(name: str, x: Any) -> Any:
    """Positions as an array, where they are a list or a range."""
    if x is None or hasattr(x, "dtype"):
        return x
    try:
        return np.asarray(x) if not _has_tracer(x) else jnp.asarray(x)
    except (ValueError, TypeError):
        raise TypeError(f"attend: {name} is {x!r}, expected an array of integers") from None


def _has_tracer(x: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x))


def _one_dtype(q: Array, k: Array, v: Array) -> jnp.dtype:
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(
            f"attend: q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}, expected one dtype"
        )
    return q.dtype


def _checked_mods(mods: Any) -> tuple[Mod, ...]:
    if isinstance(mods, Mod):
        return (mods,)
    if not isinstance(mods, Iterable) or isinstance(mods, str):
        raise TypeError(
            f"attend: mods is {type(mods).__name__}, expected a tuple of mods; a function of "
            "scores is mods.mod(fn), a mask goes to mask="
        )
    for i, m in enumerate(mods):
        if not isinstance(m, Mod):
            raise TypeError(
                f"attend: mods[{i}] is {type(m).__name__}, expected a Mod, see mods.mod"
            )
    return tuple(mods)


def _check_kinds(mask: Any, blocks: Any, normalizer: Any) -> None:
    if not isinstance(mask, Mask):
        raise TypeError(
            f"attend: mask is {'None' if mask is None else type(mask).__name__}, expected a Mask; "
            "no mask is masks.everything, an array is masks.array(x)"
        )
    if blocks is not None and not isinstance(blocks, Selection):
        raise TypeError(
            f"attend: blocks is {type(blocks).__name__}, expected None or a Selection, see select"
        )
    if not isinstance(normalizer, Normalizer):
        raise TypeError(
            f"attend: normalizer is {normalizer!r}, expected a Normalizer such as "
            "normalizers.softmax or normalizers.softpick()"
        )


def finish(request: Request, out: Array) -> Array:
    """(B,N,T,D) in the working dtype -> (B,T,N,D) in the caller's."""
    return out.transpose(0, 2, 1, 3).astype(request.dtype)
