"""SEA: its oracle, the budget that heads share, the mean of the values."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.sparse_select import sea_attention, sea_kept
from tests.helpers import draw, draws, near, qkv, run
from tests.ops.plain import blend, heads, sigmoid, weights

B, T, N, K, H, M = 2, 11, 4, 2, 8, 5


def kept_keys(estimate, keep):
    B, N, T, M = estimate.shape
    seen = np.zeros((B, N, T, T), bool)
    for b, i in np.ndindex(B, T):
        budget = min(max(N * round(keep * M / (i + 1)), 1), N * M)
        cells = sorted(np.ndindex(N, M), key=lambda c: -estimate[b, c[0], i, c[1]])[:budget]
        for n, j in np.ndindex(N, i + 1):
            column = max(math.floor((j + 0.5) / (i + 1) * M - 1e-4), 0)
            seen[b, n, i, j] = (n, column) in cells
    return seen


def sea_attention_oracle(q, k, v, estimate, scales, keep):
    a, b = np.moveaxis(sigmoid(scales), -1, 0)[..., None]
    read = blend(weights(q, k, kept_keys(estimate, keep)), v)
    past = np.stack([heads(v, q.shape[2])[:, : i + 1].mean(1) for i in range(q.shape[1])], axis=1)
    return a * b * read + (1 - b) * past


def test_heads_share_a_budget():
    estimate = draw(B, N, T, M)
    kept = np.asarray(run(sea_kept, estimate, keep=2)) & np.tri(T, dtype=bool)
    np.testing.assert_array_equal(kept, kept_keys(np.float64(estimate), 2))
    one = np.asarray(run(sea_kept, estimate.at[:, 1:].add(-9.0), keep=1)) & np.tri(T, dtype=bool)
    assert (one[:, 0, :3] == np.tri(3, T)).all() and one[:, 1:, :3].any()
    assert one[:, 0].any(-1).all() and not one[:, 1:, 3:].any()  # budgets of M cells and fewer


def test_without_attention_there_is_the_mean():
    q, k, v = qkv(B, T, N, H, K=K)
    estimate, scales = draws((B, N, T, M), (B, T, N, 2))
    out = run(sea_attention, q, k, v, estimate, scales.at[..., 1].set(-40.0), keep=1)
    mean = jnp.cumsum(v.repeat(N // K, 2), 1) / jnp.arange(1.0, T + 1)[:, None, None]
    near(out, mean)


def test_no_budget():
    with pytest.raises(ValueError, match="keep: 0; expected at least 1"):
        sea_kept(draw(B, N, T, M), keep=0)
