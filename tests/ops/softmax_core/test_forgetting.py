"""The oracle of `forgetting` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, causal, kv, weights


def forgetting_attention(q, k, v, log_f, allowed=None):
    H = q.shape[-1]
    allowed = causal(q.shape[1], k.shape[1]) if allowed is None else allowed

    def score(b, n, i, j):
        # the gates between key and query; for a key ahead of its query the sum runs backwards
        lo, hi, sign = (j, i, 1) if j <= i else (i, j, -1)
        decay = sign * sum(log_f[b, t, n] for t in range(lo + 1, hi + 1))
        return q[b, i, n] @ k[b, j, kv(q, k, n)] / np.sqrt(H) + decay

    return blend(weights(q, k, allowed, logit=score), v)
