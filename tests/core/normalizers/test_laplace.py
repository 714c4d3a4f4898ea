"""."""

import jax
import jax.numpy as jnp

from attnjax.ops.linear_recurrent.mega import laplace
from tests.helpers import near


def test_laplace_follows_the_squared_relu_at_the_fitted_point():
    at = jnp.sqrt(0.5)
    value = lambda s: laplace.numerator(s, s, (), ())
    near(value(at), 0.5)
    near(jax.grad(value)(at), jax.grad(lambda s: jax.nn.relu(s) ** 2)(at))
    inside = value(jnp.linspace(-1.0, 1.7, 50))
    assert (inside > 0).all() and (inside < 1).all() and (jnp.diff(inside) > 0).all()
