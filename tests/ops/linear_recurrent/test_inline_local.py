"""The oracle of `inline_local` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.linear_recurrent.test_inline import inline_attention


def inline_local_attention(q, k, v, coefficients, shape):
    (B, T, N, _), K, (rows, columns) = q.shape, k.shape[2], shape
    out = inline_attention(q, k, v)
    for b, i, n in np.ndindex(B, T, N):
        row, column = divmod(i, columns)
        for y, x in np.ndindex(3, 3):
            r, c = row + y - 1, column + x - 1
            if 0 <= r < rows and 0 <= c < columns:
                out[b, i, n] += coefficients[b, n, y, x] * v[b, r * columns + c, n * K // N]
    return out
