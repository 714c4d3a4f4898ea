"""ReGLA: its oracle; feature map, refined gate and normed output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.linear_recurrent import log_refined_gate, regla, safe_exp
from tests.helpers import draws, near
from tests.laws.cases import BY_NAME
from tests.ops.plain import sigmoid, sums

B, T, N, H = 2, 9, 4, 8


def regla_oracle(q, k, v, gate, refine):
    phi_q = np.exp(q - q.max(-1, keepdims=True))
    phi_k = np.exp(k - k.max((1, 3), keepdims=True))  # over features and tokens
    g, r = sigmoid(gate), sigmoid(refine)
    refined = (1 - r) * g**2 + r * (1 - (1 - g) ** 2)
    x = sums(phi_q, phi_k, v, np.log(refined))
    return x / np.sqrt((x**2).mean(-1, keepdims=True))


def test_two_tokens_by_hand():
    """A key that is e^5 times larger takes nearly all, whichever comes first."""
    k = jnp.asarray([[0.0, -1.0], [5.0, 4.0]]).reshape(1, 2, 1, 2)
    v = jnp.eye(2).reshape(1, 2, 1, 2)
    open_gate = jnp.full((1, 2, 1, 2), 100.0)
    of = lambda k, v: regla(0 * k, k, v, open_gate, 0 * open_gate)[0, 1, 0]
    near(of(k, v), (0.0095, 1.4142), 5e-5)
    near(of(k[:, ::-1], v[:, ::-1]), (0.0095, 1.4142), 5e-5)


@pytest.mark.parametrize("impl", ["recurrent", "chunked"])
def test_a_key_counts_again_once_the_gate_has_forgotten_a_larger_one(impl):
    """In float32, e^-100 of a channel's largest key would be zero beside it."""
    k = jnp.asarray([100.0, 0.0, 2.0]).reshape(1, 3, 1, 1)
    v = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).reshape(1, 3, 1, 2)
    gate = jnp.asarray([100.0, -200.0, 100.0]).reshape(1, 3, 1, 1)
    loss = lambda k: regla(0 * k, k, v, gate, 0 * gate, impl=impl)
    out, slope = loss(k), jax.grad(lambda k: loss(k)[0, 2, 0, 0])(k)
    x = np.array([np.e**2, 1])
    near(out[0, 1:, 0], [[0, np.sqrt(2)], np.sqrt(2) * x / np.linalg.norm(x)])
    assert np.isfinite(slope).all() and slope[0, 2, 0, 0] > 0.01


def test_the_features_of_regla_reach_one_and_stay_positive():
    (x,) = draws((B, T, N, H))
    phi = safe_exp(30.0 * x)
    assert (phi.max(-1) == 1).all() and (phi >= 0).all() and (safe_exp(x) > 0).all()
    assert np.isfinite(safe_exp(1e30 * x)).all()


def test_an_undecided_refinement_leaves_the_gate():
    gate = jnp.linspace(-30.0, 30.0, 61)
    near(log_refined_gate(gate, 0 * gate), jax.nn.log_sigmoid(gate), 1e-6)


def test_the_refined_gate_is_that_of_the_paper_and_learns_where_a_sigmoid_does_not():
    gate = jnp.linspace(-6.0, 6.0, 13)
    g = jax.nn.sigmoid(gate)
    refined = lambda gate, refine: jnp.exp(log_refined_gate(gate, refine))
    for refine in (-2.0, 0.5, 3.0):
        r = jax.nn.sigmoid(refine)
        near(refined(gate, refine), (1 - r) * g**2 + r * (1 - (1 - g) ** 2), 1e-6)
    slope = jax.grad(refined)
    plain = jax.grad(jax.nn.sigmoid)
    for x, refine in ((-8.0, 3.0), (8.0, -3.0)):  # near 0, then near 1
        assert slope(x, refine) > 1.8 * plain(x)
    assert abs(slope(0.0, 0.0) - plain(0.0)) < 1e-6
    for x in (-200.0, 200.0):
        for refine in (-200.0, 200.0):
            assert np.isfinite(log_refined_gate(x, refine))
            assert np.isfinite(jax.grad(log_refined_gate, argnums=(0, 1))(x, refine)).all()


def test_the_output_of_regla_is_normed():
    args = BY_NAME["regla"].sample(seed=2)
    near(jnp.square(regla(**args)).mean(-1), jnp.ones((B, T, N)), 1e-4)
    near(regla(**{**args, "v": 7.0 * args["v"]}), regla(**args), 1e-4)
    assert not np.any(regla(**{**args, "v": 0 * args["v"]}))
