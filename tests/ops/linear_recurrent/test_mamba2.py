"""The oracle of `mamba2` in float64 loops, and its own tests."""

import numpy as np


def mamba2(x, dt, A, B, C, D):
    """The semiseparable matrix L * (C B^T), applied to dt x, head by head."""
    (batch, T, N, _), K = x.shape, B.shape[2]
    out = np.zeros_like(x)
    for b, t, n in np.ndindex(batch, T, N):
        for s in range(t + 1):
            L = np.exp(A[n] * dt[b, s + 1 : t + 1, n].sum())
            weight = L * (C[b, t, n * K // N] @ B[b, s, n * K // N])
            out[b, t, n] += weight * dt[b, s, n] * x[b, s, n]
        out[b, t, n] += D[n] * x[b, t, n]
    return out
