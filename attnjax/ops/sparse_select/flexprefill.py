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

import functools

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import finite
from attnjax.core.pairwise.attend import Impl, attend, attention_weights
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, K, Out, Q, TokenK, TokenV


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
    """Causal attention of a prompt, T = S, for inference: its last queries choose for all of it.

    Each query head chooses for itself; `mask` forbids more, but does not choose. A choice that
    depends on nothing later is `flexprefill_by_query`.
    """
    chosen = flexprefill_selection(q, k, block_size, gamma, tau, min_budget)
    return attend(q, k, v, blocks=chosen, mask=masks.causal & mask, impl=impl)


def flexprefill_selection(
    q: Q, k: K, block_size: int, gamma: float, tau: float, min_budget: int
) -> Selection:
    """The blocks that `flexprefill` attends to: entry b of row u tells whether it sees block b."""
    T, t, scale = q.shape[1], min(block_size, q.shape[1]), q.shape[-1] ** -0.5
    if k.shape[1] != T:
        raise ValueError(f"k: length S = {k.shape[1]}; expected q's T = {T}, one prompt")
    q, k, last = finite(q), finite(k), finite(q[:, -t:])
    means = select.mean_pool(k, block_size)
    u, b = np.indices((n := means.shape[1], n))
    scores = select.dot_scores(select.mean_pool(q, block_size), means) * scale
    share = jax.nn.softmax(jnp.where((b <= u)[:, None], scores, -jnp.inf))
    pairs = _members(select.top_p_of_head(share, gamma, block_k=block_size))
    w = attention_weights(last, k, mask=masks.window(None, T - t))  # causal, for the last t
    key = np.arange(T - t, T)[:, None] - np.arange(T)  # where query i meets diagonal d
    shifted = jnp.where(key >= 0, jnp.take_along_axis(w, np.abs(key)[None, None], -1), 0.0)
    lines_of = lambda x: _members(select.top_p(x.sum(2)[:, None], gamma, block_k=1))
    column, diagonal = lines_of(w), lines_of(shifted)
    first, end = (u - b - 1) * block_size + 1, np.minimum((u + 1) * block_size, T) - b * block_size
    lines = _any(column, b * block_size, (b + 1) * block_size) | _any(diagonal, first, end)

    guess = jax.nn.softmax(select.dot_scores(last.mean(1, keepdims=True), means) * scale)[:, 0]
    true = jnp.pad(w.mean(2), ((0, 0), (0, 0), (0, -T % block_size)))
    near = js_distance(guess, true.reshape(*guess.shape, block_size).sum(-1)) < tau
    chosen = jnp.where(near[:, None, :, None], pairs, lines)
    rank = select.causal_scores(scores, block_size, block_size).at[..., 0].set(jnp.inf)
    least = jnp.sort(rank)[..., -min(max(2, -(-min_budget // block_size)), n)][..., None]
    chosen = (chosen | (rank >= least)) & (b <= u)[:, None]
    indices = jnp.broadcast_to(jnp.arange(n), chosen.shape)
    return Selection(indices, chosen, block_size, block_size)


def js_distance(a: Array, b: Array) -> Array:
    """The root of the Jensen-Shannon divergence over the last axis, from 0 to sqrt(log 2)."""
    term = lambda p: jnp.where(p > 0, p * jnp.log(2 * jnp.where(p > 0, p, 1.0) / (a + b)), 0.0)
    return jnp.sqrt(jnp.maximum((term(a) + term(b)).sum(-1) / 2, 0.0))


def _members(chosen: Selection) -> Array:
    return jnp.take_along_axis(chosen.valid, jnp.argsort(chosen.indices, axis=-1), axis=-1)


def _any(members: Array, first: np.ndarray, end: np.ndarray) -> Array:
    """Whether (B,1,N,T) has a member from first_ub up to end_ub, (B,U,N,n)."""
    before = jnp.pad(jnp.cumsum(members[:, 0], axis=-1), ((0, 0), (0, 0), (1, 0)))
    first, end = (np.clip(x, 0, members.shape[-1]) for x in (first, end))
    return jnp.swapaxes(before[..., end] > before[..., first], 1, 2)


_causal = functools.partial(multi_head_attention, mask=masks.causal)
OPS = (
    Op(
        flexprefill,
        papers=(77,),
        draw={"block_size": 2, "gamma": 0.5, "tau": 0.2, "min_budget": 3},
        limits=(Limit("gamma = 1 is causal attention", {"gamma": 1.0}, _causal),),
    ),
)
