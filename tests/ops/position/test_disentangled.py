"""The oracle of `disentangled` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, weights


def disentangled_attention(q, k, v, q_rel, k_rel, allowed=None):
    (_, _, N, H), K = q.shape, k.shape[2]
    far = len(k_rel) // 2

    def delta(i, j):
        if i - j <= -far:
            return 0
        return 2 * far - 1 if i - j >= far else i - j + far

    def score(b, n, i, j):
        query, key = q[b, i, n], k[b, j, n * K // N]
        return (
            query @ key + query @ k_rel[delta(i, j), n] + key @ q_rel[delta(j, i), n]
        ) / np.sqrt(3 * H)

    return blend(weights(q, k, allowed, logit=score), v)
