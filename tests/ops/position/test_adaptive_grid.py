"""Adaptive positions of a grid: the oracle, and what is added being a row's and a column's."""

import numpy as np
import pytest

from attnjax.ops.position import adaptive_grid_positions
from attnjax.ops.position.adaptive_grid import OPS
from tests.helpers import near
from tests.ops.plain import depthwise, sigmoid


def adaptive_grid_positions_oracle(x, weights, shape):
    w, W, out = weights, x.shape[2], x.copy()
    half = W // 2

    def code(t, channel):
        angle = t * 10000.0 ** (-(channel % half) / (half - 1))
        return np.sin(angle) if channel < half else np.cos(angle)

    for b in range(len(x)):
        inner = np.maximum(x[b].mean(0) @ w.inner.w + w.inner.b, 0.0)
        alpha, beta = (sigmoid(inner @ f.w + f.b) for f in (w.rows, w.columns))
        for t, channel in np.ndindex(*x.shape[1:]):
            row, column = divmod(t, shape[1])
            out[b, t, channel] += alpha[channel] * code(row, channel)
            out[b, t, channel] += beta[channel] * code(column, channel)
    return out


def locality_feed_forward_oracle(x, weights, shape):
    w, out = weights, np.zeros_like(x)
    for b in range(len(x)):
        inner = np.maximum(x[b] @ w.inner.w + w.inner.b, 0.0).reshape(*shape, -1)
        near = np.maximum(depthwise(inner, w.kernel) + w.kernel_bias, 0.0)
        out[b] = np.maximum(near.reshape(len(x[b]), -1) @ w.outer.w + w.outer.b, 0.0)
    return out


def test_what_is_added_is_of_the_row_and_of_the_column():
    args = OPS[0].sample(seed=1, T=12)
    added = np.asarray(adaptive_grid_positions(**args) - args["x"]).reshape(2, 3, 4, 8)
    near(added[:, 1:] - added[:, :-1], (added[:, 1:] - added[:, :-1])[:, :, :1] + 0 * added[:, 1:])
    with pytest.raises(ValueError, match=r"shape: \(3, 3\); expected T = 12 cells"):
        adaptive_grid_positions(**args | {"shape": (3, 3)})
