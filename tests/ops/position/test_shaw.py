"""The oracle of Shaw's relative attention."""

import numpy as np

from tests.ops.plain import blend, weights


def shaw_relative_attention_oracle(q, k, v, table_k, table_v, allowed=None):
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    far = len(table_k) // 2
    entry = lambda i, j: min(max(j - i, -far), far) + far

    def score(b, n, i, j):
        return q[b, i, n] @ (k[b, j, n * K // N] + table_k[entry(i, j)]) / np.sqrt(H)

    w = weights(q, k, allowed, logit=score)
    out = blend(w, v)
    for b, n, i, j in np.ndindex(B, N, T, S):
        out[b, i, n] += w[b, n, i, j] * table_v[entry(i, j)]
    return out
