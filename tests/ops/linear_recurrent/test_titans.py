"""The oracle of `titans` in float64 loops, and its own tests."""

import numpy as np

from tests.ops import plain as _plain
from tests.ops.plain import heads


def titans_memory(q, k, v, eta, theta, alpha, weights, chunk=16):
    """Token by token, with the gradients of one matrix or of a network of two written out."""
    (B, T, N, _), D = q.shape, v.shape[-1]
    k, v = heads(k, N), heads(v, N)
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        memory = [w[n].copy() for w in weights]
        momentum = [np.zeros_like(w) for w in memory]
        for t in range(T):
            if t % chunk == 0:
                at = [w.copy() for w in memory]
            key, value = k[b, t, n], v[b, t, n]
            if len(at) == 1:
                gradient = [2 * np.outer(key, key @ at[0] - value)]
            else:
                hidden = key @ at[0]
                gate = _plain.sigmoid(hidden)
                error = 2 * (hidden * gate @ at[1] - value)
                slope = gate * (1 + hidden * (1 - gate))
                gradient = [np.outer(key, at[1] @ error * slope), np.outer(hidden * gate, error)]
            for i, g in enumerate(gradient):
                momentum[i] = eta[b, t, n] * momentum[i] - theta[b, t, n] * g
                memory[i] = (1 - alpha[b, t, n]) * memory[i] + momentum[i]
            read = q[b, t, n] @ memory[0]
            if len(memory) == 2:
                read = read * _plain.sigmoid(read) @ memory[1]
            out[b, t, n] = read
    return out
