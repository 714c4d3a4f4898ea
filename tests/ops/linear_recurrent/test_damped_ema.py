"""The oracle of `damped_ema` in float64 loops, and its own tests."""

import numpy as np


def damped_ema(x, weights):
    """By its kernel."""
    alpha, delta, beta, eta = weights
    out = np.zeros_like(x)
    for t in range(x.shape[1]):
        for j in range(t + 1):
            out[:, t] += (eta * (1 - alpha * delta) ** (t - j) * alpha * beta).sum(-1) * x[:, j]
    return out


def damped_ema_convolution(x, weights):
    """By its recurrence."""
    alpha, delta, beta, eta = weights
    out, h = np.zeros_like(x), np.zeros((len(x), *alpha.shape))
    for t in range(x.shape[1]):
        h = alpha * beta * x[:, t, :, None] + (1 - alpha * delta) * h
        out[:, t] = (eta * h).sum(-1)
    return out
