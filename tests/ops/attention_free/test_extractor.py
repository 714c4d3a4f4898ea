"""The Extractor: its oracles, kinds of maps, one lag."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.core.numerics import Affine
from attnjax.ops.attention_free import extractor
from tests.helpers import draws, near, run

B, T, W, L = 2, 9, 3, 4


def sums(x, lags, t):
    maps = [w if w.ndim == 2 else np.diag(w) if w.ndim else w * np.eye(x.shape[2]) for w in lags]
    return sum(x[:, t - lag] @ w for lag, w in enumerate(maps) if lag <= t)


def extractor_oracle(x, lags, bias, gate):
    rows = [(sums(x, lags, t) + bias) * (x[:, t] @ gate[0] + gate[1]) for t in range(x.shape[1])]
    return np.stack(rows, axis=1)


def extractor_by_root_oracle(x, lags, bias, gate):
    rows = [
        (sums(x, lags, t) / np.sqrt(t + 1) + bias) * (x[:, t] @ gate[0] + gate[1])
        for t in range(x.shape[1])
    ]
    return np.stack(rows, axis=1)


@pytest.mark.parametrize("shape", [(L,), (L, W), (1, W, W), (2 * T, W)])
def test_kinds_of_maps(shape):
    x, lags, bias, w, b = draws((B, T, W), shape, (W,), (W, W), (W,))
    got = run(extractor, x, lags, bias, Affine(w, b))
    exact = [np.float64(a) for a in (x, lags, bias)]
    near(got, extractor_oracle(*exact, (np.float64(w), np.float64(b))), 2e-5)
    if len(lags) == 1:
        near(got, (x @ lags[0] + bias) * (x @ w + b))
    assert got.dtype == jnp.float32
