"""The oracle of `lightning` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import rms, sigmoid_gated


def lightning_attention(q, k, v, log_decay):
    """(Q K^T * M) V."""
    (_, T, N, _), K = q.shape, k.shape[2]
    k, v = np.repeat(k, N // K, axis=2), np.repeat(v, N // K, axis=2)
    distance = np.arange(T)[:, None] - np.arange(T)
    M = np.exp(log_decay[:, None, None] * np.maximum(distance, 0)) * (distance >= 0)
    return np.einsum("nts,btnh,bsnh,bsnd->btnd", M, q, k, v)


def gated_lightning_attention(q, k, v, log_decay, gate):
    def silu(x):
        return x * sigmoid_gated(x)

    out = lightning_attention(silu(q), silu(k), v, log_decay)
    return rms(out.reshape(*out.shape[:2], -1)).reshape(out.shape) * gate
