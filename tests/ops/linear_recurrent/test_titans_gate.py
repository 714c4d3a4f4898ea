"""The oracle of `titans_gate` in float64 loops, and its own tests."""

import numpy as np

from tests.ops import plain as _plain
from tests.ops.plain import heads


def memory_as_gate(q, k, v, memory, gate, persistent, window):
    (B, T, N, H), S = q.shape, k.shape[1]
    k, v = heads(k, N), heads(v, N)
    learned_k, learned_v = (heads(x[None], N)[0] for x in persistent)
    out = np.zeros_like(memory)
    for b, t, n in np.ndindex(B, T, N):
        near = range(max(0, t - window + 1), min(t + 1, S))
        keys = [*learned_k[:, n], *(k[b, j, n] for j in near)]
        values = [*learned_v[:, n], *(v[b, j, n] for j in near)]
        w = _plain.softmax(np.array(keys) @ q[b, t, n] / np.sqrt(H))
        g = _plain.sigmoid(gate[b, t, n])
        out[b, t, n] = (1 - g) * (w @ np.array(values)) + g * memory[b, t, n]
    return out
