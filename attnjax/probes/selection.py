"""How much of the attention a selection of blocks recalls, and the selection that recalls most."""

import functools

import jax
import jax.numpy as jnp

from attnjax.core import normalizers
from attnjax.core.blocks import select
from attnjax.core.blocks.block_maps import block_mass
from attnjax.core.blocks.selection import Selection
from attnjax.core.masks import Mask, everything
from attnjax.core.mods import Mod
from attnjax.core.pairwise.attend import attend_state


def selection_recall(
    q: jax.Array,
    k: jax.Array,
    selection: Selection,
    *,
    mods: tuple[Mod, ...] = (),
    mask: Mask = everything,
    scale: float | None = None,
) -> jax.Array:
    """The share of each query's softmax weights that lies in its selected blocks, (B,T,N).

    q (B,T,N,H), k (B,S,K,H); `selection` is `blocks` of `attend`, the rest as there.  1 for a
    query that sees no key.  As costly as attention, in O(T + S) memory; no map is formed.
    """
    v = jnp.zeros((*k.shape[:3], 1), k.dtype)
    state = functools.partial(attend_state, q, k, v, mods=mods, mask=mask, scale=scale)
    part, whole = state(blocks=selection), normalizers.log_sum(state())
    nothing = whole <= normalizers.lowest(whole.dtype)
    share = jnp.where(nothing, 1.0, jnp.exp(normalizers.log_sum(part) - whole))
    return jnp.swapaxes(share[..., 0], 1, 2)


def best_selection(
    q: jax.Array,
    k: jax.Array,
    count: int,
    *,
    block_q: int,
    block_k: int,
    heads: int | None = None,
    mods: tuple[Mod, ...] = (),
    mask: Mask = everything,
    scale: float | None = None,
) -> Selection:
    """The `count` blocks that hold most of the attention of each block of queries: an oracle.

    It looks at all scores, so it is no faster than attention; selectors are measured beside it.
    `heads` that select (1, K or N, the default) share the blocks of their query heads' total.
    """
    rest = {"mods": mods, "mask": mask, "scale": scale}
    mass = block_mass(q, k, block_q, block_k, **rest)
    if heads is not None:
        mass = select.over_group(mass, heads)
    mass = jnp.where(mass > 0, mass, -jnp.inf)
    return select.top_k(mass, count, block_q=block_q, block_k=block_k)
