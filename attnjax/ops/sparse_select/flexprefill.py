"""FlexPrefill: each head finds its own pattern of blocks, and as many as its attention asks for.

    w_ij = softmax_{j <= i}(q_i . k_j / sqrt(H)) for i in the last block_size queries
    t_b = mean_i sum of w_ij in block b,  a_b = softmax_b(mean(last q) . mean(k in b) / sqrt(H))
    sqrt(JSD(a, t)) < tau:  the block pairs (u, b), by falling p_ub = softmax_{b <= u}(mean(q in u)
                            . mean(k in b) / sqrt(H)), whose running sum is at most gamma U
    always:  pairs with b in the n_c blocks of columns j of largest weight, or with u - b in the n_d
             blocks of diagonals i - j; block 0 and u - b = 0 are among them
    n = c / 128 + 1, rounded down and kept between the budgets; c - 1 is the number of columns, or
        diagonals, by falling weight, with a running sum of at most gamma, or of 0 under tau

Paper: Lai et al., "FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient
Long-Sequence Inference", 2025, arXiv:2502.20766, algorithms 1 to 4.
Limits: gamma = 1 in heads with sqrt(JSD) < tau is causal attention; so are budgets of all keys.
Differs: as in the released code, where lines are as wide as blocks and 128 stands in n whatever
block_size is. The paper's lines, one token wide, are `lines_of_tokens`; its algorithms also take
the pair and the line that cross gamma.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import finite
from attnjax.core.pairwise.attend import Impl, attend, attention_weights
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Bool, Float, Out, Q, TokenK, TokenV

Mass = Float[Array, "B N T"]
Lines = Callable[..., Bool[Array, "B U N n"]]

_LINES_IN_A_BLOCK = 128  # of the released code: not block_size


def lines_of_blocks(
    columns: Mass, diagonals: Mass, gamma: Array, size: int, least: int, most: int
) -> Bool[Array, "B U N n"]:
    """The released code's: n blocks of columns and n blocks of diagonals, one block of each row.

    columns and diagonals (B,N,T) are the weights of keys j and of distances i - j; gamma (B,N,1).
    """
    T = columns.shape[-1]

    def kept(lines: Mass, blocks: Float[Array, "B N n"]) -> Bool[Array, "B N n"]:
        n = blocks_of_lines(lines, gamma, least, most)
        return _largest(blocks.at[..., 0].set(jnp.inf), n)

    # the released code cuts diagonals into blocks from the farthest on
    by_offset = _mass_of_blocks(diagonals[..., ::-1], size)[..., ::-1]
    of_columns = kept(columns, _mass_of_blocks(columns, size))
    of_offsets = kept(diagonals, by_offset)
    u, b = np.indices((-(-T // size), -(-T // size)))
    return jnp.moveaxis(of_columns[:, :, None] | of_offsets[..., np.maximum(u - b, 0)], 1, 2)


def blocks_of_lines(lines: Mass, gamma: Array | float, least: int, most: int) -> Array:
    """How many blocks lines of such weights (...,T) get: n."""
    count = (_running_sums(lines) <= gamma).sum(-1) + 1
    return jnp.clip(count // _LINES_IN_A_BLOCK + 1, least, most)


def lines_of_tokens(
    columns: Mass, diagonals: Mass, gamma: Array, size: int, least: int, most: int
) -> Bool[Array, "B U N n"]:
    """The paper's: the fewest columns and diagonals that reach gamma, and all blocks they cross."""
    T = columns.shape[-1]

    def kept(lines: Mass) -> Bool[Array, "B N T"]:
        sums = _running_sums(lines)
        before = jnp.concatenate([jnp.zeros_like(sums[..., :1]), sums[..., :-1]], axis=-1)
        return _largest(lines, jnp.clip((before < gamma).sum(-1), least * size, most * size))

    u, b = np.indices((-(-T // size), -(-T // size)))
    nearest, farthest = (u - b - 1) * size + 1, np.minimum((u + 1) * size, T) - b * size
    crossed = _any(kept(columns), b * size, (b + 1) * size)
    return jnp.moveaxis(crossed | _any(kept(diagonals), nearest, farthest), 1, 2)


def _running_sums(x: Array) -> Array:
    """Of the entries of the last axis by falling size."""
    return jnp.cumsum(-jnp.sort(-x, axis=-1), axis=-1)


def _largest(x: Float[Array, "... n"], count: Array) -> Bool[Array, "... n"]:
    """The `count` largest of each row; of equals the earlier ones."""
    return jnp.argsort(jnp.argsort(-x, axis=-1), axis=-1) < count[..., None]


@of_whole_text
@on_any_mesh
def flexprefill(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    block_size: int = 128,
    gamma: float = 0.9,
    tau: float = 0.1,
    min_budget: int = 512,
    max_budget: int | None = None,
    lines: Lines = lines_of_blocks,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Causal weights, chosen by the last queries: for the prefill of a prompt, T = S.

    No query attends to a later key, but which keys it attends to depends on the whole prompt, so
    the future leaks into every token, under any mask: not for training. `flexprefill_by_query`
    chooses by nothing later. Each query head chooses for itself; `mask` forbids more, but does not
    choose. Budgets are lengths of keys for each kind of lines, `lines_of_blocks` or
    `lines_of_tokens`; a prompt of up to two blocks, or of min_budget, sees everything.
    """
    chosen = flexprefill_selection(q, k, block_size, gamma, tau, min_budget, max_budget, lines)
    return attend(q, k, v, blocks=chosen, mask=masks.causal & mask, impl=impl)


@on_any_mesh
def flexprefill_selection(
    q: Q,
    k: TokenK,
    block_size: int,
    gamma: float,
    tau: float,
    min_budget: int,
    max_budget: int | None = None,
    lines: Lines = lines_of_blocks,
) -> Selection:
    """The blocks that `flexprefill` attends to: entry b of row u tells whether it sees block b."""
    T, size = q.shape[1], block_size
    if k.shape[1] != T:
        raise ValueError(f"k: length S = {k.shape[1]}; expected q's T = {T}, one prompt")
    q, k = finite(q), finite(k)
    means = select.mean_pool(k, size)
    n = means.shape[1]
    own_or_before = np.tri(n, dtype=bool)[:, None]
    least, most = max(1, -(-min_budget // size)), -(-(max_budget or T) // size)
    if n <= max(2, least):
        every = jnp.broadcast_to(own_or_before, (len(q), n, q.shape[2], n))
        return select.from_dense(every, block_q=size, block_k=size)

    last = q[:, -size:]
    w = attention_weights(last, k, mask=masks.window(None, T - size))  # causal
    columns, diagonals = w.mean(2), _mass_of_diagonals(w)
    guess = jax.nn.softmax(scores_of_mean(last, means))
    near = js_distance(guess, _mass_of_blocks(columns, size)) < tau

    share = jnp.where(near, 0.0, gamma)[..., None]  # near heads have lines of the budget alone
    wanted = lines(columns, diagonals, share, size, least, min(most, n))
    scores = select.dot_scores(select.mean_pool(q, size), means) * q.shape[-1] ** -0.5
    pairs = pairs_by_mass(jax.nn.softmax(jnp.where(own_or_before, scores, -jnp.inf)), gamma)
    wanted = wanted.at[..., 0].set(True) | np.eye(n, dtype=bool)[None, :, None]
    wanted = (wanted | near[:, None, :, None] & pairs) & own_or_before[None]
    return select.from_dense(wanted, block_q=size, block_k=size)


def scores_of_mean(last: Q, means: Float[Array, "B n K H"]) -> Float[Array, "B N n"]:
    """Scaled scores of the mean of the last queries for the blocks' mean keys."""
    scores = select.dot_scores(last.mean(1, keepdims=True), means)
    return scores[:, 0] * last.shape[-1] ** -0.5


def pairs_by_mass(share: Float[Array, "B U N n"], gamma: float) -> Bool[Array, "B U N n"]:
    """The largest shares of each head while their sum is at most gamma of all."""
    B, U, N, n = share.shape
    flat = jnp.moveaxis(share, 2, 1).reshape(B, N, U * n)
    bound = jnp.inf if gamma >= 1 else gamma * U  # all, whatever rounding
    kept = _largest(flat, (_running_sums(flat) <= bound).sum(-1))
    return jnp.moveaxis(kept.reshape(B, N, U, n), 1, 2)


def js_distance(a: Array, b: Array) -> Array:
    """The root of the Jensen-Shannon divergence over the last axis, from 0 to sqrt(log 2)."""
    term = lambda p: jnp.where(p > 0, p * jnp.log(2 * jnp.where(p > 0, p, 1.0) / (a + b)), 0.0)
    return jnp.sqrt(jnp.maximum((term(a) + term(b)).sum(-1) / 2, 0.0))


def _mass_of_diagonals(w: Float[Array, "B N t T"]) -> Mass:
    """The mean weight of each distance i - j, of the last t rows i."""
    t, T = w.shape[2:]
    rows = np.arange(T - t, T)[:, None]
    at = rows - np.arange(T)  # the key at a distance from a row
    shifted = jnp.take_along_axis(w, np.maximum(at, 0)[None, None], -1)
    return jnp.where(at >= 0, shifted, 0.0).mean(2)


def _mass_of_blocks(w: Float[Array, "B N T"], size: int) -> Float[Array, "B N n"]:
    """The sum of the weights in each block of keys."""
    w = jnp.pad(w, ((0, 0), (0, 0), (0, -w.shape[-1] % size)))
    return w.reshape(*w.shape[:2], w.shape[-1] // size, size).sum(-1)


def _any(kept: Bool[Array, "B N T"], first: np.ndarray, end: np.ndarray) -> Array:
    """Whether one from first_ub up to end_ub is kept, (B,N,U,n)."""
    before = jnp.pad(jnp.cumsum(kept, axis=-1), ((0, 0), (0, 0), (1, 0)))
    first, end = (np.clip(x, 0, kept.shape[-1]) for x in (first, end))
    return before[..., end] > before[..., first]


_DRAW = {"block_size": 2, "gamma": 0.5, "tau": 0.2, "min_budget": 3}
OPS = (
    Op(flexprefill_selection, papers=(77,), reads="all", draw=_DRAW),
    Op(
        flexprefill,
        papers=(77,),
        reads="all",
        draw=_DRAW,
        limits=(
            Limit(
                "gamma = 1 in query-aware heads is causal attention",
                {"gamma": 1.0, "tau": 1.0},
                causal_attention,
            ),
        ),
    ),
)
