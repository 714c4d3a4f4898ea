"""Which tokens a result depends on, of any function: a picture of mechanisms without a matrix."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from attnjax.typing import Array, Float


def influence(fn: Callable[[Array], Array], x: Float[Array, "B S *rest"]) -> Float[Array, "N T S"]:
    """|d out_i / d x_j| / sqrt(D): the root of the sum of squares over all but tokens and heads.

    fn gives (B,T,N,D), or (B,T,...), whose N here is one and D the rest.  Of attention by its
    values it is the weights, for B = 1.  All T N D rows of the Jacobian are held at once: for
    small sizes.
    """
    out = jax.eval_shape(fn, x)
    heads = out.shape[2] if out.ndim == 4 else 1
    slopes = jax.jacrev(fn)(x)
    slopes = slopes.reshape(*out.shape[:2], heads, -1, *x.shape[:2], x[0, 0].size)
    squares = jnp.sum(jnp.square(slopes), axis=(0, 3, 4, 6)) / slopes.shape[3]
    return jnp.sqrt(squares).transpose(1, 0, 2)
