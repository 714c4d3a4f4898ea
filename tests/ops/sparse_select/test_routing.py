"""The oracle of `routing` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, both, standard, weights


def routing_attention(q, k, v, centroids, window, allowed=None):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    q, k = standard(q), standard(k)
    found = {}
    for b, n, c in np.ndindex(B, *centroids.shape[:2]):
        mu = centroids[n, c]
        rows = sorted(range(T), key=lambda t: q[b, t, n] @ mu)[-window:]
        columns = sorted(range(S), key=lambda s: k[b, s, n * K // N] @ mu)[-window:]
        inside = np.zeros((B, N, T, S), bool)
        inside[b, n][np.ix_(rows, columns)] = True
        out = blend(weights(q, k, both(allowed, inside)), v)
        for t in rows:
            found.setdefault((b, t, n), []).append(out[b, t, n])
    total = np.zeros((B, T, N, v.shape[-1]))
    for (b, t, n), outs in found.items():
        total[b, t, n] = np.mean(outs, axis=0)
    return total
