"""The oracle of `dynamic_mask` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, both, weights


def dynamic_mask_attention(q, k, v, w, a, window, block_size, allowed=None):
    """The blocks are those of the kernel: what is seen does not depend on them."""
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    delta = np.zeros((B, S, K))
    for b, j in np.ndindex(B, S):
        finite = np.where(np.isfinite(v[b, j]), v[b, j], 0.0).reshape(-1)
        delta[b, j] = np.exp(a * np.log1p(np.exp(finite @ w)))
    seen = np.zeros((B, N, T, S), bool)
    for b, n, i in np.ndindex(B, N, T):
        past = range(min(i + 1, S))
        score = lambda j, b=b, n=n: -delta[b, j, n * K // N]
        seen[b, n, i, sorted(past, key=score)[:window]] = True
    logit = lambda b, n, i, j: (
        q[b, i, n] @ k[b, j, n * K // N] / np.sqrt(H) + delta[b, j, n * K // N]
    )
    return blend(weights(q, k, both(allowed, seen), logit=logit), v)
