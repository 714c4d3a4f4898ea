"""Dual tokens: their oracles, full attention where cells are the global tokens, the grid's size."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.core.numerics import Affine
from attnjax.ops.low_rank import dual_token_mixer, fused_globals
from attnjax.ops.low_rank.dual_token import Maps
from tests.helpers import draw, draws, near, run
from tests.ops.plain import blend, depthwise, sigmoid, weights

B, W, N, H = 2, 6, 2, 3


def read(x, y, maps):
    heads = lambda z, w: np.einsum("btw,wnh->btnh", z, w)
    q, k, v = heads(x, maps[0]), heads(y, maps[1]), heads(y, maps[2])
    return np.einsum("btnh,nhw->btw", blend(weights(q, k, None), v), maps[3])


def fused_globals_oracle(g, x, maps, mix, shape, grid):
    image = x.reshape(len(x), *shape, -1)
    means = []
    for r, c in np.ndindex(*grid):
        cut = lambda i, n, E: slice(i * E // n, -(-(i + 1) * E // n))
        rows, columns = cut(r, grid[0], shape[0]), cut(c, grid[1], shape[1])
        means.append(image[:, rows, columns].mean((1, 2)))
    means = np.stack(means, axis=1)
    m = sigmoid(mix)
    return m * g + (1 - m) * read(means, means, maps)


def dual_token_mixer_oracle(x, g, kernel, maps, out, shape):
    images = x.reshape(len(x), *shape, -1)
    local = np.stack([depthwise(image, kernel) for image in images]).reshape(x.shape)
    return (local + read(x, g, maps)) @ out[0] + out[1]


def learned():
    return Maps(*draws((W, N, H), (W, N, H), (W, N, H), (N, H, W), seed=2))


def test_cells_as_global_tokens_are_attention_among_them():
    x, maps = draw(B, 12, W), learned()
    eye = Affine(jnp.eye(W), jnp.zeros(W))
    got = run(dual_token_mixer, x, x, jnp.zeros((3, 3, W)), maps, eye, shape=(3, 4))
    want = read(np.float64(x), np.float64(x), [np.float64(m) for m in maps])
    near(got, want)
    stays = fused_globals(x, x, maps, jnp.full(W, -60.0), shape=(3, 4), grid=(3, 4))
    near(stays, want)


def test_a_grid_of_another_size():
    with pytest.raises(ValueError, match=r"grid: \(2, 3\); expected M = 4 cells"):
        fused_globals(draw(B, 4, W), draw(B, 12, W), learned(), draw(W), shape=(3, 4), grid=(2, 3))
