"""A gated recurrent unit as a layer of lab's models, and as a cell of one's own."""

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax import lab


class GRU(lab.Whole):
    """h' = (1 - z) tanh(x_n + r h_n) + z h with gates z, r = sigmoid of what x and h give.

    `heads` and `gate` are those of other layers, which it has none of.

    Paper: Cho et al. 2014, arXiv:1406.1078.
    """

    def __init__(self, width: int, heads: int = 1, *, gate: object = None, rngs: nnx.Rngs):
        self.seen = nnx.Linear(width, 3 * width, rngs=rngs)
        self.kept = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)

    def step(self, h: jax.Array, seen: jax.Array) -> jax.Array:
        """The next state (B,width), of the one before and `self.seen(x)` of a token."""
        xz, xr, xn = jnp.split(seen, 3, axis=-1)
        hz, hr, hn = jnp.split(self.kept(h), 3, axis=-1)
        z = jax.nn.sigmoid(xz + hz)
        return (1 - z) * jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn) + z * h

    def __call__(self, x: jax.Array) -> jax.Array:
        """All states (B,T,width) of x (B,T,width), from zero."""

        def go(h: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = self.step(h, seen)
            return h, h

        return jax.lax.scan(go, jnp.zeros_like(x[:, 0]), self.seen(x).swapaxes(0, 1))[1].swapaxes(
            0, 1
        )
