"""Positions that act on queries and keys: rotary embeddings."""

import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import wide
from attnjax.typing import Array


def rotary(x: Array, positions: Array, base: float = 10000.0) -> Array:
    """RoPE: x (B,T,N,H) turned by positions (T,) or (B,T), wide; q . k depends on differences.

    Channels h and h + H/2 are a plane that turns by position * base^(-2h/H) radians.
    Su et al. 2021, arXiv:2104.09864; the paper pairs neighboring channels, a fixed permutation.
    """
    half, odd = divmod(x.shape[-1], 2)
    if odd:
        raise ValueError(f"rotary: x has width H = {x.shape[-1]}, expected an even number")
    x = wide(x)
    rate = base ** (-np.arange(half) / half)
    at = jnp.atleast_2d(jnp.asarray(positions, x.dtype))[..., None, None]
    angle = at * jnp.asarray(rate, x.dtype).reshape(1, 1, 1, half)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
