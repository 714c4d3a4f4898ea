"""The oracle of `rala` in float64 loops, and its own tests."""

import numpy as np

from tests.ops import plain
from tests.ops.plain import elu1_kernelized


def rala(q, k, v, gate):
    (B, T, N, H), (S, K, D) = q.shape, v.shape[1:]
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        keys, values = k[b, :, n * K // N], v[b, :, n * K // N]
        a = S * plain.softmax(keys @ q[b, :, n].mean(0) / np.sqrt(H))
        for i in range(T):
            w = np.array(
                [a[j] * (elu1_kernelized(q[b, i, n]) @ elu1_kernelized(keys[j])) for j in range(S)]
            )
            out[b, i, n] = gate[b, i, n] * (w @ values / w.sum())
    return out
