"""STAR: its oracle; the core drawn and in the mean, order and number of series."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.attention_free import series_core, star_mixer
from tests.helpers import draw, near
from tests.laws.cases import BY_NAME
from tests.ops.linear_recurrent.test_family import largest
from tests.ops.plain import gelu, softmax


def star_mixer_oracle(x, weights):
    w, out = weights, np.zeros_like(x)
    for b in range(len(x)):
        u = gelu(x[b] @ w.hidden.w + w.hidden.b) @ w.offer.w + w.offer.b
        core = [softmax(u[:, r]) @ u[:, r] for r in range(u.shape[1])]
        for c in range(x.shape[1]):
            both = np.concatenate([x[b, c], core])
            out[b, c] = gelu(both @ w.fuse.w + w.fuse.b) @ w.out.w + w.out.b
    return out


WEIGHTS = BY_NAME["star_mixer"].sample()["weights"]


def test_permuted_series_permute_the_result():
    x, star = draw(2, 9, 8), jax.jit(star_mixer)
    order = np.random.default_rng(0).permutation(9)
    near(star(x[:, order], WEIGHTS), star(x, WEIGHTS)[:, order])


def test_no_array_grows_with_the_square_of_the_number_of_series():
    trace = lambda T: jax.make_jaxpr(star_mixer)(jnp.zeros((1, T, 8)), WEIGHTS)
    assert largest(trace(4096).jaxpr) <= 2.1 * largest(trace(2048).jaxpr)


def test_a_drawn_core_is_the_mean_core_in_the_mean():
    offers = draw(1, 3, 2)
    many = jnp.broadcast_to(offers, (40000, 3, 2))
    drawn = series_core(many, jax.random.key(0))
    assert np.isin(drawn, offers).all()
    near(drawn.mean(0), series_core(offers)[0], 0.03)


def test_a_key_draws_the_core_and_its_gradient_goes_to_what_was_drawn():
    key, x = jax.random.key(1), draw(2, 9, 8)
    mixed = jax.jit(star_mixer)
    near(mixed(x, WEIGHTS, key=key), mixed(x, WEIGHTS, key=key))
    assert np.abs(mixed(x, WEIGHTS, key=key) - mixed(x, WEIGHTS)).max() > 1e-3
    offers = draw(2, 9, 4)
    grad = jax.grad(lambda offers: series_core(offers, key).sum())(offers)
    assert np.array_equal(np.sort(grad, axis=1)[:, -1:], np.ones((2, 1, 4)))
    assert grad.sum() == 8


def test_one_series_alone_is_its_core():
    offers = draw(2, 1, 4)
    near(series_core(offers), offers)
    near(series_core(offers, jax.random.key(0)), offers)
