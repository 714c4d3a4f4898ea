"""TaylorShift: its oracles; both forms, softmax, the polynomial, the crossovers."""

import jax.numpy as jnp
import numpy as np

from attnjax import features, masks
from attnjax.core.pairwise import attend as engine
from attnjax.ops.linear_recurrent import taylor_crossover, taylor_shift, taylor_shift_direct
from tests.helpers import near, qkv
from tests.ops import plain

B, T, N, H = 2, 9, 4, 8


def _cosine(x, y):
    return x @ y / np.sqrt(x @ x) / np.sqrt(y @ y)


def taylor_shift_direct_oracle(q, k, v, temperature, allowed=None):
    N, K = q.shape[2], k.shape[2]
    logit = lambda b, n, i, j: temperature[n] * _cosine(q[b, i, n], k[b, j, n * K // N])
    series = lambda s: (1 + s + s**2 / 2) / (1 + s + s**2 / 2).sum()
    return plain.blend(plain.weights(q, k, allowed, series, logit), v)


def taylor_shift_oracle(q, k, v, temperature):
    return taylor_shift_direct_oracle(q, k, v, temperature)


TEMPERATURE = jnp.asarray([0.5, 1.0, 2.0, 4.0])


def test_the_causal_efficient_form_is_the_masked_direct_form():
    q, k, v = qkv(B, T, N, H)
    causal = taylor_shift(q, k, v, TEMPERATURE, block=1)
    near(causal, taylor_shift_direct(q, k, v, TEMPERATURE, mask=masks.causal))
    far = taylor_shift(q, k, v.at[:, 5:].set(7.0), TEMPERATURE, block=1)
    near(far[:, :5], causal[:, :5])


def test_taylor_shift_approaches_softmax_for_small_scores():
    q, k, v = qkv(B, T, N, H)
    soft = lambda t: engine.attend(features.cosine(q), features.cosine(k), v, scale=t)
    error = lambda t: np.abs(taylor_shift(q, k, v, jnp.full(N, t)) - soft(t)).max()
    assert error(0.5) < 2e-2 and error(0.125) < error(0.5) / 30  # of third order: 64


def test_the_polynomial_is_at_least_one_half():
    x = jnp.linspace(-3, 1, 401)
    phi = features.taylor(2)
    f = jnp.sum(phi(x[:, None]) * phi(jnp.ones(1)), -1)
    near(f.min(), 0.5)
    near(x[jnp.argmin(f)], -1.0)


def test_the_crossovers_are_those_of_the_papers_table():
    """N_0 and N_1 of table 1, for the usual head widths."""
    table = {8: (73, 47), 16: (273, 159), 32: (1057, 574), 64: (4161, 2174), 128: (16513, 8446)}
    for width, (operations, numbers) in table.items():
        got = taylor_crossover(width)
        assert abs(got.operations - operations) < 1 and abs(got.numbers - numbers) < 1
        assert got.operations <= width**2 + width + 0.75
        assert got.numbers <= width**2 / 2 + 2 * width + 0.5
