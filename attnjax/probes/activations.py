"""Outliers of activations, and what rounding them to eight bits costs.

Paper: Bondarenko et al., "Quantizable Transformers", 2023, arXiv:2306.12929.
"""

import jax
import jax.numpy as jnp


def kurtosis(x: jax.Array) -> jax.Array:
    """E[(x - mean)^4] / E[(x - mean)^2]^2 over all entries: 3 for a normal distribution.

    Calculated in float32 (float64 stays); a constant array gives nan.
    """
    x = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
    square = (x - x.mean()) ** 2
    return (square**2).mean() / square.mean() ** 2


def largest_activation(x: jax.Array) -> jax.Array:
    """max |x| over all entries."""
    return jnp.abs(x).max()


def int8_round(x: jax.Array) -> jax.Array:
    """x rounded to 255 evenly spaced levels in [-max|x|, max|x|], as symmetric int8 would.

        step = max|x| / 127,    out = step * round(x / step)

    One step for the whole tensor, so one outlier costs every other entry its precision.
    """
    step = jnp.abs(x).max() / 127
    return jnp.round(x / jnp.where(step > 0, step, 1)) * step
