"""Softmax attention maps pooled to blocks, without the maps: O(T + S) memory beside the result.

    w_ij = softmax_j(scale * q_i . k_j),    mass_ub = sum over the pairs of block (u, b) of w_ij,
    peak_ub = max over these pairs

What selectors are judged by, and learn from.  As costly as attention, and not differentiated.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core import normalizers, tiles
from attnjax.core.attend import attend_state
from attnjax.core.call import allowed, cut_operands, modify, prepare, product
from attnjax.core.masks import Mask
from attnjax.core.mods import Mod
from attnjax.core.tiles import Tile
from attnjax.typing import Array, Float, K, Q


def block_mass(
    q: Q,
    k: K,
    block_q: int,
    block_k: int,
    *,
    mods: tuple[Mod, ...] = (),
    mask: Mask | None = None,
    scale: float | Array | None = None,
) -> Float[Array, "B U N n"]:
    """The sum of the softmax weights in each block; rows of a block of t queries sum to t."""
    return _pooled(q, k, block_q, block_k, jnp.sum, mods, mask, scale)


def block_peak(
    q: Q,
    k: K,
    block_q: int,
    block_k: int,
    *,
    mods: tuple[Mod, ...] = (),
    mask: Mask | None = None,
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
    mask: Mask | None,
    scale: float | Array | None,
) -> Array:
    q, k = lax.stop_gradient((q, k))
    none = lambda D: jnp.zeros((*k.shape[:3], D), k.dtype)
    state = attend_state(q, k, none(1), mods=mods, mask=mask, scale=scale)
    total = normalizers.log_sum(state)
    call = prepare(q, k, none(0), mods, mask, normalizers.softmax, scale, None, None)
    z = call.shape
    n = -(-z.S // block_k)

    def of_row(u: Array) -> Array:
        rows = u * block_q + jnp.arange(block_q)
        tile = Tile(tiles.chosen(rows, None), call.whole.k)
        ok = (rows < z.T)[:, None]
        if (seen := allowed(call.mask, tile)) is not None:
            ok = ok & seen
        s = product(tiles.take(call.q, tile.q, -2), call.k)
        ok = jnp.broadcast_to(ok, s.shape)
        s = modify(call.mods, s, cut_operands(call.mods, tile), tile, ok)
        here = tiles.take(total, tile.q, -2)
        w = jnp.where(ok, jnp.exp(jnp.where(ok, s - here, 0.0)), 0.0)
        w = jnp.pad(w, ((0, 0), (0, 0), (0, 0), (0, n * block_k - z.S)))
        return reduce(w.reshape(*w.shape[:3], n, block_k), axis=(2, 4))  # (B,N,n)

    return jnp.swapaxes(lax.map(of_row, jnp.arange(-(-z.T // block_q))), 0, 1)
