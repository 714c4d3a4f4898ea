"""What the studies of softmax attention draw and compare with, beside loops."""

from typing import Any

import numpy as np
from flax import nnx

from experiments.core import _gru


def test_the_recurrent_layer_is_a_gated_recurrent_unit():
    rng = np.random.default_rng(0)
    layer: Any = _gru.GRU(4, rngs=nnx.Rngs(0))
    x = rng.standard_normal((2, 5, 4)).astype(np.float32)
    learned = layer.seen.kernel, layer.seen.bias, layer.kept.kernel
    w, b, u = (np.asarray(p[...], np.float64) for p in learned)
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    h = np.zeros((2, 4))
    for t in range(5):
        (xz, xr, xn), (hz, hr, hn) = (np.split(a, 3, -1) for a in (x[:, t] @ w + b, h @ u))
        new = np.tanh(xn + sigmoid(xr + hr) * hn)
        h = (1 - sigmoid(xz + hz)) * new + sigmoid(xz + hz) * h
        np.testing.assert_allclose(layer(x)[:, t], h, atol=1e-6)
