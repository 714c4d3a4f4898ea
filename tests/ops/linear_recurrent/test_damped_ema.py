"""The damped EMA: the oracle of each form is the other form; both with a state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.linear_recurrent import damped_ema, damped_ema_convolution
from attnjax.ops.linear_recurrent.damped_ema import EMA, EMAState, as_printed
from tests.helpers import draws, near
from tests.laws.cases import BY_NAME

B = 2


def damped_ema_oracle(x, weights):
    """By its kernel."""
    alpha, delta, beta, eta, omega = weights
    out = omega * x
    for t in range(x.shape[1]):
        for j in range(t + 1):
            each = eta * (1 - alpha * delta) ** (t - j) * alpha * beta
            out[:, t] += each.sum(-1) / np.sqrt(eta.shape[1]) * x[:, j]
    return out


def damped_ema_convolution_oracle(x, weights):
    """By its recurrence."""
    alpha, delta, beta, eta, omega = weights
    out, h = np.zeros_like(x), np.zeros((len(x), *alpha.shape))
    for t in range(x.shape[1]):
        h = alpha * beta * x[:, t, :, None] + (1 - alpha * delta) * h
        out[:, t] = (eta * h).sum(-1) / np.sqrt(eta.shape[1]) + omega * x[:, t]
    return out


def test_a_damped_ema_by_scan_is_the_convolution():
    weights = BY_NAME["damped_ema"].sample()["weights"]
    x, before = draws((B, 70, 8), (B, 8, 4))
    for state in (None, EMAState(before)):
        run = lambda op, state=state: op(x, weights, state=state, return_state=True)
        near(run(damped_ema_convolution), run(damped_ema), 2e-5)


@pytest.mark.parametrize("ends", [(2, 20, 50, 60, 70), (2, 70, 70, 70, 70), (0, 0, 0, 0, 60)])
def test_a_damped_ema_of_documents_by_scan_is_the_convolution(ends):
    """The first goes on from a state; padding in places."""
    weights = BY_NAME["damped_ema"].sample()["weights"]
    x, before = draws((B, 70, 8), (B, 8, 4))
    ids = np.searchsorted(ends, np.arange(70), side="right")
    ids = np.stack([np.where(np.arange(70) % 9 == 4, -1, ids - 1), np.full(70, 7)])
    for state in (None, EMAState(before, np.array([0, 7]))):
        run = lambda op, state=state: op(x, weights, documents=ids, state=state, return_state=True)
        near(run(damped_ema_convolution), run(damped_ema), 2e-5)


@pytest.mark.parametrize("op", [damped_ema, damped_ema_convolution])
def test_released_and_printed_numbers(op):
    """The released module, with the silu at its end; the paper's eta . h."""
    x = jnp.array([[[1.0], [0.0]]])
    told = {1: ([1.2264, 0.2222], [0.5, 0.375]), 4: ([1.7616, 0.5094], [2.0, 1.5])}
    for M, (released, printed) in told.items():
        half, one = jnp.full((1, M), 0.5), jnp.ones((1, M))
        weights = EMA(half, half, one, one, jnp.ones(1))
        near(jax.nn.silu(op(x, weights))[0, :, 0], np.array(released), 1e-4)
        near(op(x, as_printed(weights))[0, :, 0], np.array(printed), 1e-6)
