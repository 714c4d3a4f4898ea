"""Softmax attention maps pooled to blocks, without the maps: O(T + S) memory beside the result.

    w_ij = softmax_j(scale * q_i . k_j),    mass_ub = sum over the pairs of block (u, b) of w_ij,
    peak_ub = max over these pairs

What selectors are judged by, and learn from.  As costly as attention, and not differentiated.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import normalizers
from attnjax.core.masks import EMPTY, Mask, everything
from attnjax.core.mods import Mod
from attnjax.core.pairwise.operands import Shape, Tile, chosen_rows, span, take_at
from attnjax.core.pairwise.request import allowed, cut_operands, modify, prepare, product
from attnjax.core.sharding import on_any_mesh
from attnjax.typing import Array, Float, K, Q


@on_any_mesh
def block_mass(
    q: Q,
    k: K,
    block_q: int,
    block_k: int,
    *,
    mods: tuple[Mod, ...] = (),
    mask: Mask = everything,
    scale: float | Array | None = None,
) -> Float[Array, "B U N n"]:
    """The sum of the softmax weights in each block; rows of a block of t queries sum to t."""
    return _pooled(q, k, block_q, block_k, jnp.sum, mods, mask, scale)


@on_any_mesh
def block_peak(
    q: Q,
    k: K,
    block_q: int,
    block_k: int,
    *,
    mods: tuple[Mod, ...] = (),
    mask: Mask = everything,
    scale: float | Array | None = None,
) -> Float[Array, "B U N n"]:
    """The largest softmax weight in each block."""
    return _pooled(q, k, block_q, block_k, jnp.max, mods, mask, scale)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _pooled(
    q: Q,
    k: K,
    block_q: int,
    block_k: int,
    reduce: Callable[..., Array],
    mods: tuple[Mod, ...],
    mask: Mask,
    scale: float | Array | None,
) -> Array:
    n = -(-k.shape[1] // block_k)

    def of_rows(w: Array, first: Array) -> Array:
        B, N, t, s = w.shape
        w = jnp.pad(w, ((0, 0), (0, 0), (0, 0), (0, n * block_k - s)))
        w = reduce(w.reshape(B, N, t // block_q, block_q, n, block_k), axis=(3, 5))
        return jnp.swapaxes(w, 1, 2)

    return reduce_rows(q, k, of_rows, block_q, mods=mods, mask=mask, scale=scale)


_ROWS = 256  # queries whose weights exist at a time, at most
_SCORES = 1 << 24  # of all heads


@on_any_mesh
def reduce_rows(
    q: Q,
    k: K,
    reduce: Callable[[Array, Array], Any],
    block_q: int = 1,
    *,
    mods: tuple[Mod, ...] = (),
    mask: Mask = everything,
    scale: float | Array | None = None,
) -> Any:
    """reduce(w, first) of the weights w of some queries, from `first` on, for all of them in turn.

    w is (B,N,t,s), t a multiple of `block_q`; keys from s <= S on and queries from T on have no
    weight.  `reduce` gives a tree of arrays (B,t/block_q,...); the result has all blocks of
    queries, (B,U,...).
    """
    q, k = lax.stop_gradient((q, k))
    v = jnp.zeros((*k.shape[:3], 0), k.dtype)
    request = prepare(q, k, v, mods=mods, mask=mask, scale=scale).scaled()
    z = request.shape
    most = min(_ROWS, z.T + block_q - 1, _SCORES // max(1, z.B * z.N * z.S))
    rows = block_q * max(1, most // block_q)

    def of_row(s: int, u: Array) -> Any:
        at = u * rows + jnp.arange(rows)
        tile = Tile(chosen_rows(at, None), span(0, s, None))
        ok = (at < z.T)[None, None, :, None]
        if (seen := allowed(request.mask, tile)) is not None:
            ok = ok & seen
        scores = product(take_at(request.q, tile.q, -2), request.k[..., :s, :])
        ok = jnp.broadcast_to(ok, scores.shape)
        scores = modify(request.mods, scores, cut_operands(request.mods, tile), tile, ok)
        return reduce(normalizers.weights(normalizers.softmax, scores, ok), u * rows)

    parts = [
        lax.map(functools.partial(of_row, s), number)
        for s, number in _keys_of_rows(request.mask, z, rows)
    ]
    U = -(-z.T // block_q)

    def flat(x: Array) -> Array:
        n, B, rows = x.shape[:3]
        return jnp.moveaxis(x, 0, 1).reshape(B, n * rows, *x.shape[3:])[:, :U]

    return jax.tree.map(lambda *x: flat(jnp.concatenate(x)), *parts)


def _keys_of_rows(mask: Mask, z: Shape, rows: int) -> list[tuple[int, np.ndarray]]:
    """(s, which rows) for rows of queries that see no key from s on, in order; s in quarters."""
    U, width = -(-z.T // rows), -(-z.S // 4)
    kind = mask.tiles(z.T, z.S, rows, width)
    if not isinstance(kind, np.ndarray):  # a traced mask
        return [(z.S, np.arange(U))]
    ends = np.where(kind != EMPTY, np.arange(1, kind.shape[1] + 1), 1).max(1)
    ends = np.minimum(np.maximum.accumulate(ends) * width, z.S)
    return [(int(s), np.flatnonzero(ends == s)) for s in np.unique(ends)]
