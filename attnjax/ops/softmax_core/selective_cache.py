"""Selective attention's cache: the keys that tokens have asked most to forget are dropped.

    F_ij = how strongly tokens before i have asked to forget key j, see `selection`
    kept_i = kept_{i-1} and i, without the key of largest F_i if they are more than `capacity`
    memory loss = mean over examples of max_i M_i / T,  M_i = sum_{j <= i} 1 - min(F_ij, tau) / tau

F never falls, so what would be masked strongly stays masked.  The first key and the query's own
stay; of equal F the older key goes.  Attention over what is kept, in one call:

    kept = masks.array(selective_kept(q, k, capacity=n)[:, None])
    attend(q, k, v, mods=(mods.pair_bias(-selection(q, k)[:, None]),), mask=masks.causal & kept)

A model adds 0.1 of the mean over layers of the loss, so that texts need few keys.

Paper: Leviathan, Kalman and Matias, "Selective Attention Improves Transformer", 2024,
arXiv:2410.02703.
Limits: a capacity of T keeps all; queries that ask for nothing have a loss of one.
Differs: the text was not at hand.  The loss is as recalled, tau = 1; which key goes first where F
is equal is our reading.  Budgets of layers are the caller's: the paper lowers them greedily.
"""

import jax.numpy as jnp
from jax import lax

from attnjax.core.chunks import scan_chunks
from attnjax.core.dispatch import compiled
from attnjax.core.sharding import on_any_mesh, pvary_like
from attnjax.op import Limit, Op, by_sizes, fill
from attnjax.ops.softmax_core.selective import selection
from attnjax.typing import Array, Bool, Float, Q, TokenK


@on_any_mesh
def selective_kept(queries: Q, keys: TokenK, *, capacity: int) -> Bool[Array, "B T T"]:
    """Which keys j a cache of `capacity` keys holds when query i asks, its own among them.

    All heads share them.  A key that was dropped never returns.  No gradient.
    """
    if capacity < 2:
        raise ValueError(f"capacity: {capacity}; expected at least 2, the first key and the own")
    return _dropped(lax.stop_gradient(selection(queries, keys)), capacity)


@compiled("capacity")
def _dropped(F: Float[Array, "B T S"], capacity: int) -> Bool[Array, "B T S"]:
    B, T, _ = F.shape
    places = jnp.arange(T, dtype=jnp.int32)

    def step(held: Array, token: tuple[Array, Array]) -> tuple[Array, Array]:
        asked, here = token
        own = here == places[None]  # (B,S)
        held = held | own
        free = held & ~own & (places > 0)[None]
        worst = jnp.argmax(jnp.where(free, asked[:, 0], -jnp.inf), axis=-1)
        over = held.sum(-1) > capacity
        held = held & ~(over[:, None] & (worst[:, None] == places[None]))
        return held, held[:, None]

    at = jnp.broadcast_to(places[None], (B, T))
    nothing = pvary_like(jnp.zeros((B, T), bool), F)
    return scan_chunks(step, nothing, (F, at), 1)[1]


@on_any_mesh
def selective_memory_loss(q: Q, k: TokenK, *, tau: float = 1.0) -> Float[Array, ""]:
    """The largest share of the keys that any query still needs, in the mean over examples.

    A key counts as forgotten in part where F is below `tau`, altogether where it is above.
    """
    if tau <= 0:
        raise ValueError(f"tau: {tau}; expected a positive number")
    F = selection(q, k)
    T = F.shape[1]
    needed = 1.0 - jnp.minimum(F, tau) / tau
    memory = jnp.sum(jnp.tril(needed), axis=-1)  # M, of each query
    return jnp.mean(jnp.max(memory, axis=-1)) / T


def _all_so_far(queries: Q) -> Bool[Array, "B T T"]:
    B, T = queries.shape[:2]
    return jnp.broadcast_to(jnp.tri(T, dtype=bool)[None], (B, T, T))


def _one() -> Float[Array, ""]:
    return jnp.ones(())


OPS = (
    Op(
        selective_kept,
        papers=(191,),
        draw={"capacity": 4},
        limits=(
            Limit("room for all", {"capacity": by_sizes(lambda z: max(2, z["T"]))}, _all_so_far),
        ),
    ),
    Op(
        selective_memory_loss,
        papers=(191,),
        limits=(Limit("q = 0 asks for nothing", {"q": fill(0.0)}, _one),),
    ),
)
