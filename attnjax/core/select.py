"""Engine 3: choose blocks of keys by content, then attend to them alone.

    scores of blocks -> Selection(indices, valid) -> attend_selected(q, k, v, selection, ...)

Sizes are static, so a selection is an array like any other; which entries count is `valid`.  The
work is that of the blocks selected, whichever they are, in forward and backward pass.

Blocks of keys are block_k neighbors, blocks of queries block_q; the last may be shorter.  Scores of
blocks are (B,U,X,n): U query blocks, n key blocks, and X = 1, K or N heads that select for
themselves: 1 for all, K for a group of query heads that share keys, N for each query head.

Selecting is not differentiated: gradients reach what is attended to, and scores only where an op
uses them in another way (a gate, a loss of their own).
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from attnjax.core import normalizers
from attnjax.core.attend import choose, choose_state
from attnjax.core.call import Blocks, check_qkv, finish, prepare, working_dtype
from attnjax.core.choice import Impl
from attnjax.core.masks import Mask
from attnjax.core.mods import Mod, RelativeValues, group_of
from attnjax.core.normalizers import Normalizer, State
from attnjax.core.place import tokens_of
from attnjax.typing import Array, Bool, Float, Int, K, Out, Q, V

BlockScores = Float[Array, "B U X n"]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["indices", "valid"], meta_fields=[]
)
@dataclass(frozen=True)
class Selection:
    """The blocks of keys that each block of queries attends to: M at most.

    indices (B,U,X,M) integers, valid (B,U,X,M) booleans.  Valid entries of one row differ from
    each other; what stands at an invalid entry does not matter.
    """

    indices: Int[Array, "B U X M"]
    valid: Bool[Array, "B U X M"]


def attend_selected(
    q: Q,
    k: K,
    v: V,
    selection: Selection,
    *,
    block_q: int,
    block_k: int,
    mods: tuple[Mod, ...] = (),
    mask: Mask | None = None,
    normalizer: Normalizer = normalizers.softmax,
    scale: float | Array | None = None,
    q_positions: Array | np.ndarray | None = None,
    k_positions: Array | np.ndarray | None = None,
    impl: Impl = None,
) -> Out:
    """`attend` over the selected blocks of keys, of which `mask` may forbid more.

    Query i of head n sees key j if block j // block_k is selected for block i // block_q and the
    head that selects for n, and if `mask` allows it.  A query without any key gives zeros.

    block_q, block_k          lengths of the blocks; they need not divide T and S
    q_positions, k_positions  (T,) and (S,), or (B,T,X) and (B,S,X) where the heads that select see
                              the tokens in an order of their own (clusters, buckets)

    The other arguments, numerics and errors are those of `attend`.  The work is that of the pairs
    selected, in tiles of 2^17 scores that gather the queries of a key block; memory O(T M + S).
    Raises ValueError for a selection that does not fit; outside jit also for an index out of range
    and for a block that is listed twice.  Under jit an index out of range selects nothing.
    """
    call = _call(
        q, k, v, selection, block_q, block_k, mods, mask, normalizer, scale,
        q_positions, k_positions, impl,
    )  # fmt: skip
    return finish(call, choose("attend_selected", impl, call).run(call))


def selected_state(
    q: Q,
    k: K,
    v: V,
    selection: Selection,
    *,
    block_q: int,
    block_k: int,
    mods: tuple[Mod, ...] = (),
    mask: Mask | None = None,
    normalizer: Normalizer = normalizers.softmax,
    scale: float | Array | None = None,
    q_positions: Array | np.ndarray | None = None,
    k_positions: Array | np.ndarray | None = None,
    impl: Impl = None,
) -> State:
    """What `attend_state` gives, of the selected blocks."""
    call = _call(
        q, k, v, selection, block_q, block_k, mods, mask, normalizer, scale,
        q_positions, k_positions, impl,
    )  # fmt: skip
    return choose_state("selected_state", impl, call).state(call)


def _call(
    q, k, v, selection, block_q, block_k, mods, mask, normalizer, scale, q_positions, k_positions,
    impl,
):  # fmt: skip
    name = "attend_selected"
    for what, size in (("block_q", block_q), ("block_k", block_k)):
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{name}: {what} is {size!r}, expected a positive integer")
    if not isinstance(selection, Selection):
        raise TypeError(
            f"{name}: selection is {type(selection).__name__}, expected a select.Selection"
        )
    values = v.v if isinstance(v, RelativeValues) else v
    z = check_qkv(name, jnp.asarray(q), jnp.asarray(k), jnp.asarray(values))
    tokens = tokens_of(impl)
    U, n = -(-z.T // block_q), -(-tokens.columns(z.S) // block_k)
    shape = jnp.shape(selection.indices)
    if jnp.shape(selection.valid) != shape:
        raise ValueError(
            f"{name}: selection.valid has shape {jnp.shape(selection.valid)}, expected that of "
            f"selection.indices, {shape}"
        )
    if len(shape) != 4 or shape[:2] != (z.B, U) or shape[2] not in (1, z.K, z.N) or not shape[3]:
        raise ValueError(
            f"{name}: selection has shape {shape}, expected (B,U,X,M) with B = {z.B}, "
            f"U = ceil(T / block_q) = {U}, X one of 1, K = {z.K}, N = {z.N}, and M at least 1"
        )
    if not jnp.issubdtype(jnp.result_type(selection.indices), jnp.integer):
        raise TypeError(
            f"{name}: selection.indices has dtype {jnp.result_type(selection.indices)}, "
            "expected integers"
        )
    _check_entries(name, selection, n)
    indices = jnp.asarray(selection.indices)
    valid = jnp.asarray(selection.valid) & (indices >= 0) & (indices < n)
    lay = lambda x: jnp.swapaxes(x, 1, 2)
    q_positions, k_positions = (
        None if x is None else jnp.asarray(x) for x in (q_positions, k_positions)
    )
    blocks = Blocks(lay(indices), lay(valid), int(block_q), int(block_k))
    call = prepare(q, k, v, mods, mask, normalizer, scale, q_positions, k_positions, blocks, tokens)
    if block_k % (group := group_of(call.mods)):
        raise ValueError(
            f"{name}: block_k is {block_k}, expected a multiple of the mods' group {group}"
        )
    return call


def _check_entries(name: str, selection: Selection, n: int) -> None:
    if isinstance(selection.indices, Tracer) or isinstance(selection.valid, Tracer):
        return
    indices, valid = np.asarray(selection.indices), np.asarray(selection.valid)
    wrong = valid & ((indices < 0) | (indices >= n))
    if wrong.any():
        at = tuple(int(x) for x in np.argwhere(wrong)[0])
        raise ValueError(
            f"{name}: selection.indices{list(at)} is {indices[at]}, expected 0 .. {n - 1}"
        )
    ordered = np.sort(np.where(valid, indices, -1 - np.arange(indices.shape[-1])), axis=-1)
    twice = (ordered[..., 1:] == ordered[..., :-1]).any(-1)
    if twice.any():
        at = tuple(int(x) for x in np.argwhere(twice)[0])
        raise ValueError(
            f"{name}: selection.indices{list(at)} lists a block twice, expected different blocks"
        )


# ------------------------------------------------------------------------ scores of blocks


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


def mean_pool(x: Float[Array, "B S K H"], block: int) -> Float[Array, "B n K H"]:
    """The mean of each block of tokens, the last over the tokens it has."""
    inside, real = blocks_of(x, block)
    return inside.sum(2) / real.sum(1)[:, None, None]


def dot_scores(q: Float[Array, "B U N H"], k: Float[Array, "B n K H"]) -> BlockScores:
    """q . k of each query head and the key head it reads, (B,U,N,n): of blocks, or of anything."""
    (B, U, N, H), heads = q.shape, k.shape[2]
    q = jnp.where(jnp.isfinite(q), q.astype(working_dtype(q.dtype)), 0.0)
    rows = q.reshape(B, U, heads, N // heads, H)
    out = jnp.einsum("BUKGH,BnKH->BUKGn", rows, k.astype(q.dtype), precision=lax.Precision.HIGHEST)
    return out.reshape(B, U, N, -1)


def over_group(scores: BlockScores, heads: int) -> BlockScores:
    """The sum over the query heads of each group: (B,U,N,n) -> (B,U,heads,n)."""
    B, U, N, n = scores.shape
    if N % heads:
        raise ValueError(f"over_group: scores have N = {N} heads, expected a multiple of {heads}")
    return scores.reshape(B, U, heads, N // heads, n).sum(3)


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


def every_block(B: int, U: int, n: int) -> Selection:
    """All blocks for everybody."""
    indices = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (B, U, 1, n))
    return Selection(indices, jnp.ones(indices.shape, bool))


def top_k(scores: BlockScores, k: int) -> Selection:
    """The k blocks of largest score in each row; -inf is never chosen, +inf first."""
    n = scores.shape[-1]
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= n:
        raise ValueError(f"top_k: k is {k!r}, expected an integer from 1 to the {n} blocks")
    values, indices = lax.top_k(lax.stop_gradient(scores), int(k))
    return Selection(indices.astype(jnp.int32), values > -jnp.inf)


def top_p(mass: BlockScores, p: float | Array, *, most: int | None = None) -> Selection:
    """The fewest blocks of each row whose mass reaches the share p of the row's, at most `most`.

    mass >= 0, rows of any total; +inf is always chosen and does not count towards the share.
    """
    total, values, indices = _by_mass(mass, most)
    before = jnp.cumsum(_finite(values), -1) - _finite(values)
    wanted = (before < _share(p) * total) & (values > 0)
    return Selection(indices, wanted | (values == jnp.inf))


def top_p_of_head(mass: BlockScores, p: float | Array, *, most: int | None = None) -> Selection:
    """The fewest pairs of a query block and a key block of each head that reach the share p.

    As `top_p`, but over all rows of a head at once: rows get as many blocks as they deserve.
    """
    _, values, indices = _by_mass(mass, most)
    B, U, X, n = mass.shape
    flat = jnp.moveaxis(_finite(lax.stop_gradient(mass)), 2, 1).reshape(B, X, U * n)
    ordered = -jnp.sort(-flat, axis=-1)
    reached = jnp.cumsum(ordered, -1) - ordered < _share(p) * ordered.sum(-1, keepdims=True)
    least = jnp.where(reached & (ordered > 0), ordered, jnp.inf).min(-1)  # the last that counts
    return Selection(indices, (values >= least[:, None, :, None]) | (values == jnp.inf))


def threshold(scores: BlockScores, least: float | Array, *, most: int | None = None) -> Selection:
    """The blocks whose score is at least `least`: the `most` largest of them."""
    n = scores.shape[-1]
    chosen = top_k(scores, _most("threshold", most, n))
    values = jnp.take_along_axis(lax.stop_gradient(scores), chosen.indices, -1)
    return replace(chosen, valid=chosen.valid & (values >= least))


def _share(p: Any) -> Any:
    if isinstance(p, int | float) and not 0 < p <= 1:
        raise ValueError(f"top_p: p is {p!r}, expected a share in (0, 1]")
    return p if not isinstance(p, int | float) or p < 1 else 1.0 + 1e-6  # all, whatever rounding


def _most(name: str, most: int | None, n: int) -> int:
    if most is not None and not 1 <= most <= n:
        raise ValueError(f"{name}: most is {most!r}, expected an integer from 1 to the {n} blocks")
    return n if most is None else int(most)


def _finite(mass: Array) -> Array:
    return jnp.where(jnp.isfinite(mass), mass, 0.0)


def _by_mass(mass: Array, most: int | None) -> tuple[Array, Array, Array]:
    mass = lax.stop_gradient(mass)
    values, indices = lax.top_k(mass, _most("top_p", most, mass.shape[-1]))
    return _finite(mass).sum(-1, keepdims=True), values, indices.astype(jnp.int32)


# --------------------------------------------------- tokens in another order: clusters, buckets


def clusters(scores: Float[Array, "B X c T"], size: int) -> Int[Array, "B T X"]:
    """Balanced clusters: the `size` tokens of largest score of each, in their order in the text.

    (B, c * size, X) token numbers, cluster behind cluster, for `take_tokens`.  A token may lie in
    several clusters, or in none.
    """
    B, X, c, T = scores.shape
    if not 1 <= size <= T:
        raise ValueError(f"clusters: size is {size}, expected an integer from 1 to T = {T}")
    members = jnp.sort(lax.top_k(lax.stop_gradient(scores), size)[1], axis=-1)
    return jnp.moveaxis(members.reshape(B, X, c * size), 1, 2).astype(jnp.int32)


def bucket_order(codes: Int[Array, "B T X"]) -> Int[Array, "B T X"]:
    """The order of tokens by bucket, and in a bucket by place: equal codes become neighbors."""
    return jnp.argsort(codes, axis=1, stable=True).astype(jnp.int32)


def take_tokens(x: Float[Array, "B T N H"], order: Int[Array, "B t X"]) -> Array:
    """Tokens in the order of each head: (B,T,N,H), (B,t,X) -> (B,t,N,H), N a multiple of X."""
    N, X = x.shape[2], order.shape[2]
    if N % X:
        raise ValueError(f"take_tokens: x has {N} heads, expected a multiple of order's X = {X}")
    at = jnp.repeat(order, N // X, axis=2) if X > 1 else order
    return jnp.take_along_axis(x, at[..., None], axis=1)


def own_block(B: int, U: int, X: int = 1) -> Selection:
    """Each block of queries selects the block of keys of its own number, for X heads."""
    indices = jnp.broadcast_to(jnp.arange(U, dtype=jnp.int32)[:, None, None], (B, U, X, 1))
    return Selection(indices, jnp.ones(indices.shape, bool))
