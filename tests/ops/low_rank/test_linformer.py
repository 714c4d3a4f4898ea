"""The oracle of `linformer` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, weights


def linformer(q, k, v, key_projection, value_projection):
    (B, S, K, _), N = k.shape, q.shape[2]

    def mixed(x, weight):
        heads = (
            [weight] * N if weight.ndim == 2 else [weight[n * len(weight) // N] for n in range(N)]
        )
        out = np.zeros((B, weight.shape[-2], N, x.shape[-1]))
        for b, r, n, s in np.ndindex(*out.shape[:3], S):
            out[b, r, n] += heads[n][r, s] * x[b, s, n * K // N]
        return out

    few = mixed(k, key_projection)
    return blend(weights(q, few, None), mixed(v, value_projection))
