"""The oracle of `hyper` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import attended, bucket, drawn_keys


def hyper_attention(q, k, v, planes, draws, block_size, density=None, allowed=None):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    blocks = -(-S // block_size)
    seen = {}
    for b, n in np.ndindex(B, N):
        g = n * K // N
        rows = sorted(range(T), key=lambda t: bucket(q[b, t, n], planes))
        columns = sorted(range(S), key=lambda s: bucket(k[b, s, g], planes))
        samples = drawn_keys(draws, np.ones(S) if density is None else density[b, :, g])
        for place, t in enumerate(rows):
            u = place // -(-T // blocks)
            own = columns[u * block_size : (u + 1) * block_size]
            far = [(j, w) for j, w in samples if j not in own]
            seen[b, t, n] = [(j, 1.0) for j in own] + far
    return attended(q, k, v, seen, allowed)
