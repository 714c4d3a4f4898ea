"""The oracle of `mlstm` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import sums


def mlstm(q, k, v, log_i, log_f):
    """Without a stabilizer: sums over pairs in float64."""
    k = np.repeat(k, q.shape[2] // k.shape[2], axis=2) * np.exp(log_i)[..., None]
    v = np.repeat(v, q.shape[2] // v.shape[2], axis=2)
    k = k / np.sqrt(q.shape[-1])
    mass = sums(q, k, np.ones_like(v[..., :1]), log_f)
    return sums(q, k, v, log_f) / np.maximum(np.abs(mass), 1)
