"""The damped EMA: the oracle of each form is the other form; both with a state."""

import numpy as np

from attnjax.ops.linear_recurrent import damped_ema, damped_ema_convolution
from tests.helpers import draws, near
from tests.laws.cases import BY_NAME

B = 2


def damped_ema_oracle(x, weights):
    """By its kernel."""
    alpha, delta, beta, eta = weights
    out = np.zeros_like(x)
    for t in range(x.shape[1]):
        for j in range(t + 1):
            out[:, t] += (eta * (1 - alpha * delta) ** (t - j) * alpha * beta).sum(-1) * x[:, j]
    return out


def damped_ema_convolution_oracle(x, weights):
    """By its recurrence."""
    alpha, delta, beta, eta = weights
    out, h = np.zeros_like(x), np.zeros((len(x), *alpha.shape))
    for t in range(x.shape[1]):
        h = alpha * beta * x[:, t, :, None] + (1 - alpha * delta) * h
        out[:, t] = (eta * h).sum(-1)
    return out


def test_a_damped_ema_by_scan_is_the_convolution():
    weights = BY_NAME["damped_ema"].sample()["weights"]
    x, before = draws((B, 70, 8), (B, 8, 4))
    for state in (None, before):
        run = lambda op, state=state: op(x, weights, state=state, return_state=True)
        near(run(damped_ema_convolution), run(damped_ema), 2e-5)
