"""InLine attention with neighbors: its oracle; which cells it reaches."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import inline_attention, inline_local_attention
from tests.helpers import near, qkv, weights_of
from tests.ops.linear_recurrent.test_inline import inline_attention_oracle

B, N, H = 2, 4, 8


def inline_local_attention_oracle(q, k, v, coefficients, shape):
    (B, T, N, _), K, (rows, columns) = q.shape, k.shape[2], shape
    out = inline_attention_oracle(q, k, v)
    for b, i, n in np.ndindex(B, T, N):
        row, column = divmod(i, columns)
        for y, x in np.ndindex(3, 3):
            r, c = row + y - 1, column + x - 1
            if 0 <= r < rows and 0 <= c < columns:
                out[b, i, n] += coefficients[b, n, y, x] * v[b, r * columns + c, n * K // N]
    return out


def test_the_local_residual_reaches_the_neighbors_of_a_cell_alone():
    q, k, v = qkv(B, 20, N, H)
    r = jnp.arange(1.0, 10.0).reshape(3, 3) * jnp.ones((B, N, 1, 1))

    def residual(q, k, v):
        with_neighbors = inline_local_attention(q, k, v, r, shape=(4, 5))
        return with_neighbors - inline_attention(q, k, v)

    weights = weights_of(residual, q, k)[0, 0].reshape(20, 4, 5)
    cell, corner = weights[1 * 5 + 2], weights[0]
    want = np.zeros((4, 5))
    want[0:3, 1:4] = np.arange(1, 10).reshape(3, 3)
    near(cell, want, 1e-4)
    near(corner[:2, :2], [[5, 6], [8, 9]], 1e-4)
