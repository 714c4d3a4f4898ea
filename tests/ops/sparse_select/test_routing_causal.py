"""The oracle of `routing_causal` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, both, standard, weights


def routing_causal(q, k, v, centroids, window, allowed=None):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    q, k = standard(q), standard(k)
    seen = np.zeros((B, N, T, S), bool)
    for b, n, t in np.ndindex(B, N, T):
        nearest = lambda x, n=n: int(np.argmax([x @ mu for mu in centroids[n]]))
        mine = nearest(q[b, t, n])
        keys = [s for s in range(min(t + 1, S)) if nearest(k[b, s, n * K // N]) == mine]
        chunks = [keys[i : i + window] for i in range(0, len(keys), window)]
        for s in sum(chunks[-2:], []):
            seen[b, n, t, s] = True
    return blend(weights(q, k, both(allowed, seen)), v)
