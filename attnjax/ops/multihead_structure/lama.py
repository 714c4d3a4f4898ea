"""Pooling by heads that are products of two vectors (LAMA).

    c = mean of the states x_t, or learned,    f_tn = tanh((c . p_n) (x_t . r_n))
    f_t <- f_t / |f_t|, over the N heads of a token,    out_n = sum_t softmax_t(f_tn) x_t

Without tanh and norm the score of head n is c^T (p_n r_n^T) x_t: rank one in place of a matrix.

Paper: Mehta et al., "Low Rank Factorization for Compact Multi-Head Self-Attention", 2019,
arXiv:1912.00835, section 3; code: JohnGiorgi/compact-multi-head-self-attention-pytorch, not the
authors'.
Limits: p = 0 is the mean of the states.
Differs: a token whose scores are all zero, which has no norm, keeps zeros.
"""

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import divide, matmul, wide
from attnjax.core.pairwise.attend import Impl
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.softmax_core.pool import attention_pool
from attnjax.typing import Array, Bool, Float


@of_whole_text
@on_any_mesh
def lama_pool(
    x: Float[Array, "B T W"],
    of_context: Float[Array, "W N"],
    of_tokens: Float[Array, "W N"],
    context: Float[Array, " W"] | None = None,
    *,
    visible: Bool[Array, "B T"] | None = None,
    impl: Impl = None,
) -> Float[Array, "B N W"]:
    """N summaries of each example; p are columns of `of_context`, r of `of_tokens`.

    `context` None takes the mean of the visible tokens; `visible` tells tokens from padding.
    """
    if visible is None:
        visible = jnp.ones(x.shape[:2], bool)
    tokens = jnp.where(visible[..., None], wide(x), 0.0)
    if context is None:
        count = visible.sum(1, dtype=tokens.dtype)[:, None]
        context = divide(tokens.sum(1), count)
    scores = jnp.tanh(matmul(context, of_context)[..., None, :] * matmul(tokens, of_tokens))
    keys = _unit(scores)[:, :, None]  # one key head, whose channels are the heads
    heads = jnp.eye(keys.shape[-1], dtype=keys.dtype)[None]
    mask = masks.array(visible[:, None, None])
    return attention_pool(heads, keys, tokens[:, :, None], mask=mask, impl=impl)[:, 0].astype(
        x.dtype
    )


def _unit(x: Array) -> Array:
    """x / |x| over the last axis; zeros, without gradient, where x is zero."""
    square = jnp.square(x).sum(-1, keepdims=True)
    none = square == 0.0
    return jnp.where(none, 0.0, x / jnp.sqrt(jnp.where(none, 1.0, square)))


def _mean(x: Array, of_context: Array) -> Array:
    return jnp.broadcast_to(x.mean(1, keepdims=True), (len(x), of_context.shape[1], x.shape[2]))


OPS = (
    Op(
        lama_pool,
        papers=(97,),
        reads="all",
        sizes={"N": 4},
        limits=(
            Limit(
                "p = 0 is the mean",
                {"of_context": fill(0.0)},
                _mean,
            ),
        ),
    ),
)
