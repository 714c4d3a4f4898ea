"""The oracle of FlexPrefill by query."""

import numpy as np

from tests.ops.plain import blend, both, cut_tail, reach, weights


def flexprefill_by_query_oracle(q, k, v, block_size, gamma, allowed=None):
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    seen = np.zeros((B, N, T, S), bool)
    cut = cut_tail(S, block_size)
    for b, n, i in np.ndindex(B, N, T):
        own = i // block_size
        mean = lambda keys, b=b, n=n: sum(k[b, j, n * K // N] for j in keys) / len(keys)
        between = {c: q[b, i, n] @ mean(cut[c]) for c in range(1, min(own, len(cut)))}
        mass = {c: np.exp(s / np.sqrt(H)) for c, s in between.items()}
        taken = (0, own, *reach(mass, gamma))
        for j in range(min(i + 1, S)):
            seen[b, n, i, j] = j // block_size in taken
    return blend(weights(q, k, both(allowed, seen)), v)
