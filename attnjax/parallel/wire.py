"""What travels between devices: narrow on the way there, wide on the way back."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from attnjax.core.numerics import clean
from attnjax.typing import Array

Move = Callable[[Array], Array]  # linear: a collective, or a rearrangement


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sent(move: Move, dtype: jnp.dtype, x: Array) -> Array:
    """move(x), where x travels in `dtype`, which holds it exactly, and its gradient in x's.

    Gradients of several devices are sums: they are not to be rounded before they are added.
    """
    return move(x.astype(dtype)).astype(x.dtype)


def _sent_fwd(move: Move, dtype: jnp.dtype, x: Array):
    return sent(move, dtype, x), jax.vjp(move, x)[1]  # linear: nothing of x is kept


def _sent_bwd(move: Move, dtype: jnp.dtype, pull: Callable[[Array], tuple[Array]], d: Array):
    return pull(d)


sent.defvjp(_sent_fwd, _sent_bwd)


def with_poison(x: Array, poison: Array) -> Array:
    """Rows (B,K,S,H) with NaN where poison (B,N,1,S) has it: it travels without a further array."""
    return x + jnp.swapaxes(poison[:, :: poison.shape[1] // x.shape[1]], 2, 3)


def without_poison(x: Array, N: int) -> tuple[Array, Array]:
    """(rows without NaN, the poison for N query heads): undoes `with_poison`."""
    x, bad = clean(x)
    return x, jnp.repeat(bad.astype(x.dtype), N // x.shape[1], axis=1)[:, :, None, :]
