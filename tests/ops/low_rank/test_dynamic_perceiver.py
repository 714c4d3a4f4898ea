"""Dynamic Perceiver: oracles, a map of one color, windows that do not divide a map."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.low_rank import cross_layer, pooled_map
from attnjax.ops.low_rank.dynamic_perceiver import OPS
from tests.helpers import draw, near, run
from tests.ops.plain import depthwise, softmax

erf = np.vectorize(math.erf)


def norm(x, w):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * w.scale + w.shift


def cross_layer_oracle(x, y, weights, table=0.0):
    w, out = weights, np.zeros(x.shape)
    for b in range(len(x)):
        source = norm(y[b], w.kv_norm)
        k, v = source @ w.k + table, source @ w.v
        for t, row in enumerate(x[b]):
            weight = softmax(k @ (norm(row, w.q_norm) @ w.q) / np.sqrt(k.shape[-1]))
            row = row + weight @ v @ w.out.w + w.out.b
            z = norm(row, w.mlp_norm) @ w.up.w + w.up.b
            out[b, t] = row + (z * (1 + erf(z / np.sqrt(2))) / 2) @ w.down.w + w.down.b
    return out


def pooled_map_oracle(image, kernel, bias, size=7):
    out = []
    for x in image:
        x = x + depthwise(x, kernel) + bias
        cuts = [
            [slice(i * n // size, math.ceil((i + 1) * n / size)) for i in range(size)]
            for n in x.shape[:2]
        ]
        out.append([x[r, c].mean((0, 1)) for r in cuts[0] for c in cuts[1]])
    return np.array(out)


def test_of_equal_cells_the_table_alone_decides():
    """All read the same values: what is added does not depend on where they look."""
    args = OPS[0].sample(seed=2)
    x, w = args["x"], args["weights"]
    y = jnp.broadcast_to(args["y"][:, :1], args["y"].shape)
    S, R = y.shape[1], w.q.shape[1]
    table = draw(S, R)
    near(run(cross_layer, x, y, w), cross_layer(x, y, w, table=table), 1e-4)
    shifted = cross_layer(x, args["y"], w, table=table + draw(R)[None])
    near(cross_layer(x, args["y"], w, table=table), shifted, 1e-4)  # a softmax forgets it
    other = run(lambda table: cross_layer(x, args["y"], w, table=table), 3 * table)
    assert np.abs(other - shifted).max() > 1e-3


def test_cells_of_any_map_are_as_many():
    kernel, bias = jnp.zeros((7, 7, 3)), jnp.zeros(3)
    for rows, columns in ((14, 14), (9, 5)):
        image = draw(1, rows, columns, 3)
        got = run(pooled_map, image, kernel, bias)
        assert got.shape == (1, 49, 3)
    whole = draw(1, 14, 14, 3)
    want = whole.reshape(1, 7, 2, 7, 2, 3).mean((2, 4)).reshape(1, 49, 3)
    near(run(pooled_map, whole, kernel, bias), want)


def test_no_cells():
    with pytest.raises(ValueError, match="size: 0; expected at least 1"):
        pooled_map(draw(1, 4, 4, 3), jnp.zeros((3, 3, 3)), jnp.zeros(3), size=0)
