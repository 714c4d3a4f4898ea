"""Attention as a choice among the inputs: the weights are the output.

    u_ij = w_score . tanh(W_key k_j + W_query q_i),    p_i = softmax_j(u_ij)

Paper: Vinyals, Fortunato and Jaitly, "Pointer Networks", 2015, arXiv:1506.03134, equation 3.
Limits: weights times values is luong_concat, attention with the same additive score.
Differs: N heads of pointers here, one in the paper; masking used positions is an option.
"""

import jax
import jax.numpy as jnp

from attnjax.core import masks, mods
from attnjax.core.numerics import project, wide
from attnjax.core.pairwise.attend import attention_weights
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, Int, K, Q, Weights


def pointer_attention(
    q: Q,
    k: K,
    w_query: Float[Array, "H R"],
    w_key: Float[Array, "H R"],
    w_score: Float[Array, " R"],
    *,
    mask: masks.Mask = masks.everything,
) -> Weights:
    """Probabilities (B,N,T,S) of each input for each step: q decoder states, k encoder states.

    Inputs that `mask` forbids get exactly zero; in q's dtype, dense by nature.
    """
    score = mods.additive(project(q, w_query), project(k, w_key), wide(w_score))
    return attention_weights(q, k, mods=(score,), mask=mask)


def unused(chosen: Int[Array, "B T"], inputs: int) -> masks.Mask:
    """Forbids at step i the inputs chosen at steps before i, so that each is used once."""
    taken = jax.nn.one_hot(chosen, inputs, dtype=jnp.int32)
    return masks.array((jnp.cumsum(taken, axis=1) == taken)[:, None])


def _alike(q: Q, k: K) -> Weights:
    (B, T, N, _), S = q.shape, k.shape[1]
    return jnp.full((B, N, T, S), 1 / S)


OPS = (
    Op(
        pointer_attention,
        papers=(320,),
        limits=(Limit("w_score = 0 points everywhere alike", {"w_score": fill(0.0)}, _alike),),
    ),
)
