"""Attention maps read off an op, and their entropy and sparsity.

Maps are (..., T, S), for instance (layers, B, N, T, S): row i holds the weights of query i.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def attention_map(op: Callable[..., jax.Array], q: jax.Array, k: jax.Array) -> jax.Array:
    """The weights (B,N,T,S) of any `op(q, k, v)` that is linear in v, in the dtype of q.

    Every column of v must be weighed alike: not so for an op that splits the heads of v.
    The identity matrix stands in for the values: v_j = e_j, so out_i = sum_j w_ij e_j = w_i.
    q (B,T,N,H), k (B,S,K,H).  Costs one call of the op with D = S; forms T x S.
    """
    B, S, K, _ = k.shape
    eye = jnp.broadcast_to(jnp.eye(S, dtype=q.dtype)[None, :, None, :], (B, S, K, S))
    return jnp.swapaxes(op(q, k, eye), 1, 2)


def entropy(maps: jax.Array) -> jax.Array:
    """-sum_j p_j log p_j of each row in nats, p = |w| / sum |w|: (..., T, S) -> (..., T).

    Rows of weights that do not sum to one are normalized first; an empty row has entropy 0.
    """
    w = jnp.abs(maps)
    total = w.sum(-1, keepdims=True)
    p = w / jnp.where(total > 0, total, 1)
    return -jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0).sum(-1)


def sparsity(maps: jax.Array, allowed: jax.Array | None = None) -> jax.Array:
    """The fraction of exact zeros among the allowed entries, over the whole array: a scalar.

    `allowed` (T,S) booleans; without it every entry counts, masked ones included.
    """
    zero = (maps == 0).mean(tuple(range(maps.ndim - 2)))
    if allowed is None:
        return zero.mean()
    return jnp.where(allowed, zero, 0).sum() / allowed.sum()
