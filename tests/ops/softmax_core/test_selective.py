"""The oracle of `selective` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, causal, kv, visible, weights


def selective_attention(q, k, v, allowed=None):
    (B, T, _, H), S = q.shape, k.shape[1]
    allowed = causal(T, S) if allowed is None else allowed
    F = np.zeros((B, T, S))
    for b in range(B):
        for i in range(T):
            for earlier in range(i):
                for j in visible(allowed, b, 0, earlier, S):
                    if j not in (0, earlier):  # the first token and the query itself stay
                        F[b, i, j] += max(0.0, q[b, earlier, 0] @ k[b, j, 0] / np.sqrt(H))
    score = lambda b, n, i, j: q[b, i, n] @ k[b, j, kv(q, k, n)] / np.sqrt(H) - F[b, i, j]
    return blend(weights(q, k, allowed, logit=score), v)
