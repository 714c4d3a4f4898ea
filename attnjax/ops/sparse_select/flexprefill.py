"""FlexPrefill: each head finds its own pattern of blocks, and as many as its attention asks for.

    w_ij = softmax_{j <= i}(q_i . k_j / sqrt(H)) for i in the last block_size queries
    t_b = mean_i sum of w_ij in block b,  a_b = softmax_b(mean(last q) . mean(k in b) / sqrt(H))
    sqrt(JSD(a, t)) < tau:  the fewest block pairs (u, b) that reach the share gamma of the head's
                            mass p_ub = softmax_{b <= u}(mean(q in u) . mean(k in b) / sqrt(H))
    otherwise:  those crossed by the fewest columns, or diagonals, that reach the share gamma of w
    always:  the first block, the own one, and by largest p_ub `min_budget` keys in all

Paper: Lai et al., "FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient
Long-Sequence Inference", 2025, arXiv:2502.20766, algorithms 1 to 4.
Limits: gamma = 1 is causal attention.
Differs: each row of blocks keeps the budget, under either pattern.
"""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import finite
from attnjax.core.pairwise.attend import Impl, attend, attention_weights
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Bool, Float, Out, Q, TokenK, TokenV


def flexprefill(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    block_size: int = 64,
    gamma: float = 0.95,
    tau: float = 0.1,
    min_budget: int = 1024,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Causal weights, chosen by the last queries: for the prefill of a prompt, T = S.

    No query attends to a later key, but which keys it attends to depends on the whole prompt, so
    the future leaks into every token, under any mask: not for training. `flexprefill_by_query`
    chooses by nothing later. Each query head chooses for itself; `mask` forbids more, but does not
    choose.
    """
    chosen = flexprefill_selection(q, k, block_size, gamma, tau, min_budget)
    return attend(q, k, v, blocks=chosen, mask=masks.causal & mask, impl=impl)


def flexprefill_selection(
    q: Q, k: TokenK, block_size: int, gamma: float, tau: float, min_budget: int
) -> Selection:
    """The blocks that `flexprefill` attends to: entry b of row u tells whether it sees block b."""
    T, size = q.shape[1], block_size
    if k.shape[1] != T:
        raise ValueError(f"k: length S = {k.shape[1]}; expected q's T = {T}, one prompt")
    q, k = finite(q), finite(k)
    means = select.mean_pool(k, size)
    n = means.shape[1]
    scores = select.dot_scores(select.mean_pool(q, size), means) * q.shape[-1] ** -0.5
    own_or_before = np.tri(n, dtype=bool)[:, None]

    last = q[:, -min(size, T) :]
    w = attention_weights(last, k, mask=masks.window(None, T - last.shape[1]))  # causal
    guess = jax.nn.softmax(scores_of_mean(last, means))
    near = js_distance(guess, _mass_of_blocks(w.mean(2), size)) < tau

    share = jax.nn.softmax(jnp.where(own_or_before, scores, -jnp.inf))
    by_mass = select.top_p_of_head(share, gamma, block_k=size).dense(n)
    wanted = jnp.where(near[:, None, :, None], by_mass, by_lines(w, gamma, size))
    nearest = select.causal_scores(scores, size, size).at[..., 0].set(jnp.inf)
    budget = min(max(2, -(-min_budget // size)), n)
    wanted = wanted | select.top_k(nearest, budget, block_k=size).dense(n)
    return select.from_dense(wanted & own_or_before, block_q=size, block_k=size)


def scores_of_mean(last: Q, means: Float[Array, "B n K H"]) -> Float[Array, "B N n"]:
    """Scaled scores of the mean of the last queries for the blocks' mean keys."""
    scores = select.dot_scores(last.mean(1, keepdims=True), means)
    return scores[:, 0] * last.shape[-1] ** -0.5


def by_lines(w: Float[Array, "B N t T"], gamma: float, size: int) -> Bool[Array, "B U N n"]:
    """Blocks that the strongest columns and diagonals pass through, for the last t rows w.

    A column is a key j, a diagonal a distance i - j; the fewest of each whose weight in w reaches
    the share gamma are kept.
    """
    t, T = w.shape[2:]
    distance = np.arange(T - t, T)[:, None] - np.arange(T)  # the key at distance d from row i
    shifted = jnp.take_along_axis(w, np.abs(distance)[None, None], -1)
    shifted = jnp.where(distance >= 0, shifted, 0.0)
    columns, diagonals = (
        select.top_p(x.sum(2)[:, None], gamma, block_k=1).dense(T)[:, 0] for x in (w, shifted)
    )
    u, b = np.indices((-(-T // size), -(-T // size)))
    nearest, farthest = (u - b - 1) * size + 1, np.minimum((u + 1) * size, T) - b * size
    crossed = _any(columns, b * size, (b + 1) * size) | _any(diagonals, nearest, farthest)
    return jnp.moveaxis(crossed, 1, 2)


def js_distance(a: Array, b: Array) -> Array:
    """The root of the Jensen-Shannon divergence over the last axis, from 0 to sqrt(log 2)."""
    term = lambda p: jnp.where(p > 0, p * jnp.log(2 * jnp.where(p > 0, p, 1.0) / (a + b)), 0.0)
    return jnp.sqrt(jnp.maximum((term(a) + term(b)).sum(-1) / 2, 0.0))


def _mass_of_blocks(w: Float[Array, "B N T"], size: int) -> Float[Array, "B N n"]:
    """The sum of the weights in each block of keys."""
    w = jnp.pad(w, ((0, 0), (0, 0), (0, -w.shape[-1] % size)))
    return w.reshape(*w.shape[:2], -1, size).sum(-1)


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
        limits=(Limit("gamma = 1 is causal attention", {"gamma": 1.0}, causal_attention),),
    ),
)
