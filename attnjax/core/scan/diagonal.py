"""Engine 4, diagonal recurrences: x_t = a_t x_{t-1} + b_t, elementwise."""

from jax import lax

from attnjax.typing import Array

# ---------------------------------------------------------------------------------- recurrences


def linear_scan(decay: Array, add: Array, start: Array) -> Array:
    """x_t = decay_t x_{t-1} + add_t along axis 0, from x_0 = start: all of them, in parallel."""

    def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return a[0] * b[0], b[0] * a[1] + b[1]

    total, x = lax.associative_scan(join, (decay, add))
    return x + total * start
