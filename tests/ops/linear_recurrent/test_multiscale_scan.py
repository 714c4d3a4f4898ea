"""The oracle of `multiscale_scan` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.linear_recurrent.test_selective_ssm import selective_ssm
from tests.ops.plain import silu


def multiscale_scan(x, routes, down, gate, rate=2):
    B, rows, columns, W = x.shape
    low = np.zeros((B, -(-rows // rate), -(-columns // rate), W))
    for r, c, i, j in np.ndindex(*low.shape[1:3], 3, 3):
        row, column = rate * r + i - 1, rate * c + j - 1
        if 0 <= row < rows and 0 <= column < columns:
            low[:, r, c] += down[i, j] * x[:, row, column]
    out = np.zeros_like(x)
    for i, (dt, b, c, log_a, skip) in enumerate(routes):
        grid, step = (low, rate) if i else (x, 1)
        order = list(np.ndindex(*grid.shape[1:3]))
        if i % 2:
            order.sort(key=lambda place: place[::-1])
        if i >= 2:
            order.reverse()
        tokens = np.stack([grid[(slice(None), *place)] for place in order], axis=1)
        rates = np.log1p(np.exp(tokens @ dt[0] + dt[1]))
        y = selective_ssm(tokens, rates, -np.exp(log_a), tokens @ b, tokens @ c) + skip * tokens
        for n, (r, col) in enumerate(order):
            out[:, step * r : step * (r + 1), step * col : step * (col + 1)] += y[:, n, None, None]
    return out * silu(x @ gate[0] + gate[1])
