"""How many directions a matrix uses: its rank, its effective rank, its cumulative spectrum."""

import jax
import jax.numpy as jnp

PAPERS = (146, 153)


def numerical_rank(x: jax.Array, tolerance: float = 1e-3) -> jax.Array:
    """Singular values above `tolerance` times the largest: (..., rows, columns) -> (...), integers.

    A matrix of zeros has rank 0.
    """
    s = jnp.linalg.svd(x, compute_uv=False)
    return jnp.sum(s > tolerance * s[..., :1], axis=-1)


def effective_rank(x: jax.Array) -> jax.Array:
    """exp of the entropy of the singular values' shares: 1 for one direction, n for n equal ones.

    (..., rows, columns) -> (...).  Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    s = jnp.linalg.svd(x, compute_uv=False)
    total = s.sum(-1, keepdims=True)
    p = s / jnp.where(total > 0, total, 1)
    return jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0), axis=-1))


def cumulative_spectrum(x: jax.Array) -> jax.Array:
    """The share that the largest r singular values have of their sum, for r = 1, 2, ...

    (..., rows, columns) -> (..., min(rows, columns)), rising to 1: fast for a matrix of low rank.
    What Linformer (Wang et al. 2020, arXiv:2006.04768, figure 1) plots of attention maps.
    """
    s = jnp.linalg.svd(x, compute_uv=False)
    total = s.sum(-1, keepdims=True)
    return jnp.cumsum(s, -1) / jnp.where(total > 0, total, 1)
