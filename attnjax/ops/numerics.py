"""Arithmetic that several leaves do before or after an engine."""

import jax.numpy as jnp

from attnjax.core.call import working_dtype
from attnjax.typing import Array


def wide(x: Array) -> Array:
    """x in float32; float64 stays float64."""
    return x.astype(working_dtype(x.dtype))


def finite(x: Array) -> Array:
    """x in float32 or float64, with zeros for NaN and infinities.

    For operands computed from the q or k that the engine gets as well.  The engine spoils the rows
    that see a NaN of q or k itself; a NaN in an operand, though masked, would turn the zero
    gradients of other rows and of shared weights into NaN.
    """
    return jnp.where(jnp.isfinite(x), wide(x), 0.0)
