"""The oracle of `selective_ssm` in float64 loops, and its own tests."""

import numpy as np


def selective_ssm(x, dt, a, b, c):
    """As a sum over pairs of tokens."""
    out, so_far = np.zeros_like(x), np.cumsum(dt, axis=1)
    for t in range(x.shape[1]):
        for j in range(t + 1):
            kept = np.exp((so_far[:, t] - so_far[:, j])[..., None] * a)
            weight = (kept * (b[:, j] * c[:, t])[:, None]).sum(-1)
            out[:, t] += weight * dt[:, j] * x[:, j]
    return out
