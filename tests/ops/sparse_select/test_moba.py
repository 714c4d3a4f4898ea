"""The oracle of MoBA."""

import numpy as np

from tests.ops.plain import blend, both, weights


def moba_oracle(q, k, v, block_size, top_k, allowed=None):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    seen = np.zeros((B, N, T, S), bool)
    for b, n, t in np.ndindex(B, N, T):
        own = t // block_size
        likes = {}
        for i in range(min(own, -(-S // block_size))):
            keys = k[b, i * block_size : (i + 1) * block_size, n * K // N]
            likes[i] = q[b, t, n] @ keys.mean(0)
        others = top_k - 1 if own * block_size < S else top_k
        best = sorted(likes, key=likes.get, reverse=True)[:others]
        for j in range(min(t + 1, S)):
            seen[b, n, t, j] = j // block_size in (own, *best)
    return blend(weights(q, k, both(allowed, seen)), v)
