"""Choosing blocks of keys by content: scores of blocks -> Selection, for `attend(..., blocks=)`.

Blocks of keys are block_k neighbors, blocks of queries block_q; the last may be shorter.  Scores of
blocks are (B,U,X,n): U query blocks, n key blocks, and X = 1, K or N heads that select for
themselves: 1 for all, K for a group of query heads that share keys, N for each query head.

Selecting is not differentiated: gradients reach what is attended to, and scores only where an op
uses them in another way (a gate, a loss of their own).
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.blocks.order import bucket_order as bucket_order
from attnjax.core.blocks.order import clusters as clusters
from attnjax.core.blocks.order import take_tokens as take_tokens
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import working_dtype
from attnjax.core.sharding import on_any_mesh
from attnjax.typing import Array, Bool, Float

BlockScores = Float[Array, "B U X n"]


# ------------------------------------------------------------------------ scores of blocks


@on_any_mesh
def blocks_of(x: Float[Array, "B S K H"], block: int) -> tuple[Array, np.ndarray]:
    """((B,n,block,K,H), (n,block)): tokens in blocks, zeros at the end, and which of them are real.

    Wide, with zeros for NaN and infinities: a block's summary is shared by queries that may not
    see all of it.
    """
    B, S, *rest = x.shape
    n = -(-S // block)
    x = jnp.where(jnp.isfinite(x), x.astype(working_dtype(x.dtype)), 0.0)
    x = jnp.pad(x, [(0, 0), (0, n * block - S)] + [(0, 0)] * len(rest))
    return x.reshape(B, n, block, *rest), np.arange(n * block).reshape(n, block) < S


@on_any_mesh
def mean_pool(x: Float[Array, "B S K H"], block: int) -> Float[Array, "B n K H"]:
    """The mean of each block of tokens, the last over the tokens it has."""
    inside, real = blocks_of(x, block)
    count = real.sum(1).astype(inside.dtype)
    return inside.sum(2) / count[None, :, None, None]


@on_any_mesh
def dot_scores(q: Float[Array, "B U N H"], k: Float[Array, "B n K H"]) -> BlockScores:
    """q . k of each query head and the key head it reads, (B,U,N,n): of blocks, or of anything."""
    (B, U, N, H), heads = q.shape, k.shape[2]
    q = jnp.where(jnp.isfinite(q), q.astype(working_dtype(q.dtype)), 0.0)
    rows = q.reshape(B, U, heads, N // heads, H)
    out = jnp.einsum("BUKGH,BnKH->BUKGn", rows, k.astype(q.dtype), precision=lax.Precision.HIGHEST)
    return out.reshape(B, U, N, k.shape[1])


@on_any_mesh
def over_group(scores: Float[Array, "B U N n"], heads: int) -> BlockScores:
    """The sum over the query heads of each group: (B,U,N,n) -> (B,U,heads,n)."""
    B, U, N, n = scores.shape
    if N % heads:
        raise ValueError(f"over_group: scores have N = {N} heads, expected a multiple of {heads}")
    return scores.reshape(B, U, heads, N // heads, n).sum(3)


@on_any_mesh
def causal_scores(scores: BlockScores, block_q: int, block_k: int) -> BlockScores:
    """Scores of blocks before the query block; +inf (always) for its own, -inf (never) after it.

    Its own are the key blocks with a token at the place of one of its queries: not all queries may
    see them whole, so their scores must not count.  What is left depends on no later token.
    """
    U, n = scores.shape[1], scores.shape[-1]
    q_first = np.arange(U)[:, None] * block_q
    k_first = np.arange(n)[None] * block_k
    before, after = k_first + block_k <= q_first, k_first >= q_first + block_q
    settled = np.where(after, -np.inf, np.inf)[:, None].astype(scores.dtype)
    return jnp.where(before[:, None], scores, settled)


# -------------------------------------------------------------------------- choosing blocks


def from_dense(chosen: Bool[Array, "B U X n"], *, block_q: int = 1, block_k: int) -> Selection:
    """The blocks that are marked: undoes `Selection.dense`."""
    indices = jnp.broadcast_to(jnp.arange(chosen.shape[-1], dtype=jnp.int32), chosen.shape)
    return Selection(indices, chosen, block_q, block_k)


def every_block(B: int, T: int, S: int, *, block_q: int = 1, block_k: int) -> Selection:
    """All blocks of S keys for all blocks of T queries, and all heads."""
    shape = (B, -(-T // block_q), 1, -(-S // block_k))
    indices = jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.int32), shape)
    return Selection(indices, jnp.ones(shape, bool), block_q, block_k)


@on_any_mesh
def top_k(scores: BlockScores, k: int, *, block_q: int = 1, block_k: int) -> Selection:
    """The k blocks of largest score in each row, or all; -inf is never chosen, +inf first."""
    k = _at_most("top_k: k", k, scores.shape[-1])
    values, indices = lax.top_k(lax.stop_gradient(scores), k)
    return Selection(indices.astype(jnp.int32), values > -jnp.inf, block_q, block_k)


@on_any_mesh
def top_p(
    mass: BlockScores, p: float | Array, *, most: int | None = None, block_q: int = 1, block_k: int
) -> Selection:
    """The fewest blocks of each row whose mass reaches the share p of the row's, at most `most`.

    mass >= 0, rows of any total; +inf is always chosen and does not count towards the share.
    """
    total, values, indices = _by_mass(mass, most)
    before = jnp.cumsum(_finite(values), -1) - _finite(values)
    wanted = (before < _share(p) * total) & (values > 0)
    return Selection(indices, wanted | (values == jnp.inf), block_q, block_k)


@on_any_mesh
def top_p_of_head(
    mass: BlockScores, p: float | Array, *, most: int | None = None, block_q: int = 1, block_k: int
) -> Selection:
    """The fewest pairs of a query block and a key block of each head that reach the share p.

    As `top_p`, but over all rows of a head at once: rows get as many blocks as they deserve.
    """
    _, values, indices = _by_mass(mass, most)
    B, U, X, n = mass.shape
    flat = jnp.moveaxis(_finite(lax.stop_gradient(mass)), 2, 1).reshape(B, X, U * n)
    ordered = -jnp.sort(-flat, axis=-1)
    reached = jnp.cumsum(ordered, -1) - ordered < _share(p) * ordered.sum(-1, keepdims=True)
    least = jnp.where(reached & (ordered > 0), ordered, jnp.inf).min(-1)  # the last that counts
    wanted = (values >= least[:, None, :, None]) | (values == jnp.inf)
    return Selection(indices, wanted, block_q, block_k)


@on_any_mesh
def threshold(
    scores: BlockScores,
    least: float | Array,
    *,
    most: int | None = None,
    block_q: int = 1,
    block_k: int,
) -> Selection:
    """The blocks whose score is at least `least`: the `most` largest of them."""
    count = _most("threshold", most, scores.shape[-1])
    chosen = top_k(scores, count, block_q=block_q, block_k=block_k)
    values = jnp.take_along_axis(lax.stop_gradient(scores), chosen.indices, -1)
    return replace(chosen, valid=chosen.valid & (values >= least))


def _share(p: Any) -> Any:
    if isinstance(p, int | float) and not 0 < p <= 1:
        raise ValueError(f"top_p: p is {p!r}, expected a share in (0, 1]")
    return p if not isinstance(p, int | float) or p < 1 else 1.0 + 1e-6  # all, whatever rounding


def _most(name: str, most: int | None, n: int) -> int:
    return n if most is None else _at_most(f"{name}: most", most, n)


def _at_most(name: str, k: Any, n: int) -> int:
    """k, or n where there are fewer blocks: a short text is seen whole."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"{name} is {k!r}, expected an integer of at least 1")
    return min(int(k), n)


def _finite(mass: Array) -> Array:
    return jnp.where(jnp.isfinite(mass), mass, 0.0)


def _by_mass(mass: Array, most: int | None) -> tuple[Array, Array, Array]:
    mass = lax.stop_gradient(mass)
    values, indices = lax.top_k(mass, _most("top_p", most, mass.shape[-1]))
    return _finite(mass).sum(-1, keepdims=True), values, indices.astype(jnp.int32)


def own_block(B: int, U: int, X: int = 1, *, block_q: int, block_k: int) -> Selection:
    """Each block of queries selects the block of keys of its own number, for X heads."""
    indices = jnp.broadcast_to(jnp.arange(U, dtype=jnp.int32)[:, None, None], (B, U, X, 1))
    return Selection(indices, jnp.ones(indices.shape, bool), block_q, block_k)
