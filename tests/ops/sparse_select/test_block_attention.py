"""The oracle of `block_attention` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, both, weights


def block_attention(q, k, v, blocks, allowed=None):
    (B, T), S = q.shape[:2], k.shape[1]
    ids = np.broadcast_to(blocks, (B, T))
    seen = np.zeros((B, 1, T, S), bool)
    for b, i, j in np.ndindex(B, T, S):
        real = ids[b, i] >= 0 and ids[b, j] >= 0
        final = ids[b, i] == max(ids[b])
        seen[b, 0, i, j] = j <= i and real and (ids[b, i] == ids[b, j] or final)
    return blend(weights(q, k, both(seen, allowed)), v)
