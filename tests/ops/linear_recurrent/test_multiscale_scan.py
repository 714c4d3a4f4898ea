"""The multi-scale scan: its oracle; orders, resolutions, and the mixer of channels."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import Affine
from attnjax.ops.linear_recurrent import multiscale_scan, selective_ssm
from attnjax.ops.linear_recurrent.multiscale_scan import ORDERS, conv_ffn, flatten, unflatten
from tests.helpers import draw, draws, near
from tests.laws.cases import BY_NAME
from tests.ops.linear_recurrent.test_selective_ssm import selective_ssm_oracle
from tests.ops.plain import silu

B = 2


def multiscale_scan_oracle(x, routes, down, gate, rate=2):
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
        y = (
            selective_ssm_oracle(tokens, rates, -np.exp(log_a), tokens @ b, tokens @ c)
            + skip * tokens
        )
        for n, (r, col) in enumerate(order):
            out[:, step * r : step * (r + 1), step * col : step * (col + 1)] += y[:, n, None, None]
    return out * silu(x @ gate[0] + gate[1])


multiscale = importlib.import_module(multiscale_scan.__module__)  # its function has its name


def test_orders_are_permutations():
    image = jnp.arange(2.0 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    seen = set()
    for order in ORDERS:
        tokens = flatten(image, order)
        assert np.array_equal(unflatten(tokens, image.shape, order), image)
        seen.add(tuple(np.asarray(tokens[0, :, 0])))
    assert len(seen) == 4


def test_three_of_four_routes_are_scanned_at_half_resolution(monkeypatch):
    scanned = []

    def counted(x, *rest):
        scanned.append(x.shape[1])
        return selective_ssm(x, *rest)

    monkeypatch.setattr(multiscale, "selective_ssm", counted)
    args = BY_NAME["multiscale_scan"].sample()
    multiscale_scan(**{**args, "x": draw(2, 8, 12, 8)})
    L = 8 * 12
    assert len(args["routes"]) == 4
    assert sorted(scanned) == [L // 4, L]  # the three are one call: 1.75 L in all


def test_a_conv_ffn_without_neighbours_is_an_mlp():
    x, up, b, down, c = draws((B, 4, 5, 3), (3, 6), (6,), (6, 3), (3,))
    alone = jnp.zeros((3, 3, 6)).at[1, 1].set(1.0)
    want = jax.nn.gelu(x @ up + b) @ down + c
    near(conv_ffn(x, Affine(up, b), alone, Affine(down, c)), want)
