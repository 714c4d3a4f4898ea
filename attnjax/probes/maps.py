"""Attention maps read off an op, and their entropy, sparsity, concentration and spectral gap.

Maps are (..., T, S), for instance (layers, B, N, T, S): row i holds the weights of query i.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

PAPERS = (158,)


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


def log_variance(maps: jax.Array) -> jax.Array:
    """The variance of log w over the positive entries of each map: (..., T, S) -> (...).

    Of softmax attention it is that of the scores, so 1 / its root is the attention's temperature.
    Paper: Nahshan et al., "Linear Log-Normal Attention with Unbiased Concentration", 2023,
    arXiv:2311.13541.
    """
    seen = maps > 0
    logs = jnp.log(jnp.where(seen, maps, 1))
    count = jnp.maximum(seen.sum((-2, -1), keepdims=True), 1)
    mean = logs.sum((-2, -1), keepdims=True) / count
    return jnp.where(seen, (logs - mean) ** 2, 0).sum((-2, -1)) / count[..., 0, 0]


def spectral_gap(maps: jax.Array) -> jax.Array:
    """1 - |second eigenvalue| of maps whose rows sum to one: (..., T, T) -> (...).

    1 for uniform attention, which forgets where it started; 0 where parts never mix.  Runs on a
    CPU.  Paper: Nahshan et al., 2023, arXiv:2311.13541.
    """
    if maps.shape[-1] != maps.shape[-2]:
        raise ValueError(f"spectral_gap: maps have shape {maps.shape}, expected T = S")
    sizes = jnp.sort(jnp.abs(jnp.linalg.eigvals(maps)), axis=-1)
    return 1 - sizes[..., -2]
