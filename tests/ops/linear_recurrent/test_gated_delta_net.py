"""The oracle of `gated_delta_net` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import unit


def gated_delta_net(q, k, v, beta, log_decay):
    """Each query walks back: what it reads at token j passes on as a (I - beta k k^T) q."""
    (B, T, N, _), (K, D) = q.shape, v.shape[2:]
    q, k, out = unit(q), unit(k), np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        c = q[b, i, n]
        for j in reversed(range(i + 1)):
            key, value, strength = k[b, j, n * K // N], v[b, j, n * K // N], beta[b, j, n]
            out[b, i, n] += strength * (c @ key) * value
            c = np.exp(log_decay[b, j, n]) * (c - strength * (c @ key) * key)
    return out
