"""The multi-scale scan: its oracle; orders, resolutions, and the mixer of channels."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import Affine
from attnjax.ops.linear_recurrent import multiscale_scan, selective_ssm
from attnjax.ops.linear_recurrent.multiscale_scan import ORDERS, conv_ffn, flatten, unflatten
from tests.helpers import draw, draws, near
from tests.laws.cases import BY_NAME
from tests.ops.linear_recurrent.test_selective_ssm import selective_ssm_oracle
from tests.ops.plain import depthwise, sigmoid, silu

B = 2


def _between(length, size):
    """(size,length): a row has the shares of the two places nearest to the middle of its own."""
    out = np.zeros((size, length))
    for i in range(size):
        place = (i + 0.5) * length / size - 0.5
        below = math.floor(place)
        for j, share in ((below, 1 - (place - below)), (below + 1, place - below)):
            out[i, min(max(j, 0), length - 1)] += share
    return out


def multiscale_scan_oracle(x, z, weights, rate=2):
    fine, coarse, norm_scale, norm_shift, squeeze, excite = weights

    def convolved(scale, step):
        image = np.stack([depthwise(one, scale.kernel) for one in x])
        return silu(image[:, ::step, ::step] + scale.bias)

    def scanned(tokens, route):
        dt, b, c, log_a, skip = route
        rates = np.log1p(np.exp(tokens @ dt[0] + dt[1]))
        read = selective_ssm_oracle(tokens, rates, -np.exp(log_a), tokens @ b, tokens @ c)
        y = read + skip * tokens
        y = y - y.mean(-1, keepdims=True)
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * norm_scale + norm_shift

    image = convolved(fine, 1)
    out = scanned(image.reshape(len(x), -1, x.shape[-1]), fine.route).reshape(x.shape)

    low = convolved(coarse, rate)
    rows = list(np.ndindex(low.shape[1:3]))
    columns = sorted(rows, key=lambda place: place[::-1])
    order = rows[::-1] + columns + columns[::-1]
    y = scanned(np.stack([low[(slice(None), *place)] for place in order], axis=1), coarse.route)
    total = np.zeros_like(low)
    for n, place in enumerate(order):
        total[(slice(None), *place)] += y[:, n]
    up, across = (_between(low.shape[a], x.shape[a]) for a in (1, 2))
    out = out + np.einsum("ri,cj,bijw->brcw", up, across, total)

    excited = sigmoid(np.maximum(out.mean((1, 2)) @ squeeze, 0) @ excite)
    return out * excited[:, None, None] * silu(z)


multiscale = importlib.import_module(multiscale_scan.__module__)  # its function has its name


def test_orders_are_permutations():
    image = jnp.arange(2.0 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    seen = set()
    for order in ORDERS:
        tokens = flatten(image, order)
        assert np.array_equal(unflatten(tokens, image.shape, order), image)
        seen.add(tuple(np.asarray(tokens[0, :, 0])))
    assert len(seen) == 4


def test_three_of_four_routes_are_one_sequence_at_half_resolution(monkeypatch):
    scanned = []

    def counted(x, *rest):
        scanned.append(x.shape[1])
        return selective_ssm(x, *rest)

    monkeypatch.setattr(multiscale, "selective_ssm", counted)
    args = BY_NAME["multiscale_scan"].sample()
    image = draw(2, 8, 12, 8)
    multiscale_scan(image, image, args["weights"])
    L = 8 * 12
    assert sorted(scanned) == [3 * L // 4, L]  # 1.75 L in all


def test_a_conv_ffn_adds_its_convolution():
    x, up, b, bias, down, c = draws((B, 4, 5, 3), (3, 6), (6,), (6,), (6, 3), (3,))
    alone = jnp.zeros((3, 3, 6)).at[1, 1].set(0.5)
    want = jax.nn.gelu(1.5 * (x @ up + b) + bias, approximate=False) @ down + c
    near(conv_ffn(x, Affine(up, b), alone, bias, Affine(down, c)), want)
