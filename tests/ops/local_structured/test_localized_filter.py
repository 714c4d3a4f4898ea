"""Localized filtering: the oracle, its reach, its parameters."""

import jax
import numpy as np

from attnjax.ops.local_structured import localized_filter
from attnjax.ops.local_structured.localized_filter import OPS
from tests.helpers import near


def localized_filter_oracle(x, weights, state=None, return_state=False):
    (B, T, _), w = x.shape, weights
    out = np.zeros(x.shape)
    for b in range(B):
        past, c = np.zeros(x.shape[2]), np.zeros(w.inner.shape[2])
        for t in range(T):
            now = past @ w.inner[0] + x[b, t] @ w.inner[1] + w.inner_bias
            h = x[b, t] + c @ w.outer[0] + now @ w.outer[1] + w.outer_bias
            out[b, t] = h / np.sqrt((h**2).mean() + 1e-6) * w.gain
            past, c = x[b, t], now
    return out


def test_a_token_reads_itself_and_the_two_before():
    given = OPS[0].sample()
    x, weights = given["x"], given["weights"]
    slope = jax.jacobian(lambda x: localized_filter(x, weights)[0, 5].sum())(x)[0]
    assert (np.abs(slope).max(-1) > 0).tolist() == [False] * 3 + [True] * 3 + [False] * 3


def test_a_run_goes_on():
    given = OPS[0].sample()
    x, weights = given["x"], given["weights"]
    first, state = localized_filter(x[:, :1], weights, return_state=True)
    rest = localized_filter(x[:, 1:], weights, state=state)
    near(np.concatenate([first, rest], axis=1), localized_filter(x, weights))
