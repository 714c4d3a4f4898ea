"""The oracle of `lavo` in float64 loops, and its own tests."""

import numpy as np

from tests.ops import plain as _plain
from tests.ops.plain import heads


def lavo(x, weights):
    """With every memory written out: its rows, their keys and their values."""
    bases, w_q, w_k, w_v, bias = weights
    (B, T, _), (N, window) = x.shape, bias.shape
    w_k, w_v = heads(w_k[None], N)[0], heads(w_v[None], N)[0]
    out = np.zeros((B, T, N, w_v.shape[-1]))
    for b, t, n in np.ndindex(B, T, N):
        mean = (x[b, : t + 1] @ bases.T).mean(0)
        memory = np.diag(mean) @ bases
        near = range(max(0, t - window + 1), t + 1)
        keys = np.concatenate([memory, x[b, near]])
        shift = np.array([0.0] * len(memory) + [bias[n, t - j] for j in near])
        s = keys @ w_k[:, n] @ (x[b, t] @ w_q[:, n]) / np.sqrt(w_q.shape[-1]) + shift
        out[b, t, n] = _plain.softmax(s) @ keys @ w_v[:, n]
    return out
