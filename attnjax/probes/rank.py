"""How many directions a matrix uses: its rank up to a tolerance, and its effective rank."""

import jax
import jax.numpy as jnp


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
