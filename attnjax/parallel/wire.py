"""What travels between devices: narrow on the way there, wide on the way back."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from attnjax.core.derive import Derived, Static
from attnjax.core.numerics import clean
from attnjax.typing import Array

Move = Callable[[Array], Array]  # linear: a collective, or a rearrangement


def sent(move: Move, dtype: jnp.dtype, x: Array) -> Array:
    """move(x), where x travels in `dtype`, which holds it exactly, and its derivatives in x's.

    Gradients of several devices are sums: they are not to be rounded before they are added.
    """
    return _sent(x, Static((move, dtype)))


def _narrow(x: Array, how: Static) -> tuple[Array, None]:
    move, dtype = how.value
    return move(x.astype(dtype)).astype(x.dtype), None


def _back(x: Array, how: Static, saved: None, d: Array) -> Array:
    return jax.linear_transpose(how.value[0], x)(d)[0]


def _wide(x: Array, how: Static) -> Array:
    return how.value[0](x)


_sent = Derived(_narrow, _back, like=_wide)


def with_poison(x: Array, poison: Array) -> Array:
    """Rows (B,K,S,H) with NaN where poison (B,N,1,S) has it: it travels without a further array."""
    return x + jnp.swapaxes(poison[:, :: poison.shape[1] // x.shape[1]], 2, 3)


def without_poison(x: Array, N: int) -> tuple[Array, Array]:
    """(rows without NaN, the poison for N query heads): undoes `with_poison`."""
    x, bad = clean(x)
    return x, jnp.repeat(bad.astype(x.dtype), N // x.shape[1], axis=1)[:, :, None, :]
