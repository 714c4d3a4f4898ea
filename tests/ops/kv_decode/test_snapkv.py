"""SnapKV: its oracle; groups, smoothing, and what is attended to."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend
from attnjax.core.blocks.select import take_tokens
from attnjax.ops.kv_decode import mean_of_neighbors, peak_of_neighbors, snapkv
from tests.helpers import draw, near, qkv
from tests.ops.plain import causal, weights


def snapkv_oracle(queries, keys, window, capacity, smooth=None, heads=None):
    """Smoothing by the mean of three, as the record draws it."""
    B, T, N = queries.shape[:3]
    X = heads or N
    w, before = weights(queries, keys, causal(T, T)), T - window
    out = np.zeros((B, capacity, X), int)
    for b, x in np.ndindex(B, X):
        group = range(x * N // X, (x + 1) * N // X)
        vote = [sum(w[b, n, i, j] for n in group for i in range(before, T)) for j in range(before)]
        padded = [0, *vote, 0]
        smoothed = [sum(padded[j : j + 3]) / 3 for j in range(before)]
        top = sorted(range(before), key=lambda j: -smoothed[j])[: capacity - window]
        out[b, :, x] = [*sorted(top), *range(before, T)]
    return out


three = partial(mean_of_neighbors, size=3)


def test_query_heads_that_share_keys_vote_together():
    q, k, v = qkv(2, 20, 4, 8, K=2)
    kept = snapkv(q, k, window=9, capacity=12, heads=2, smooth=three)
    want = snapkv_oracle(np.float64(q), np.float64(k), 9, 12, heads=2)
    np.testing.assert_array_equal(kept, want)
    next_q = draw(2, 1, 4, 8, seed=9)
    short = attend(next_q, take_tokens(k, kept), take_tokens(v, kept))
    seen = np.zeros((2, 4, 1, 20), bool)
    for b, n in np.ndindex(2, 4):
        seen[b, n, 0, want[b, :, n // 2]] = True
    w = weights(np.asarray(next_q), np.asarray(k), seen)
    near(short, np.einsum("bnts,bsnd->btnd", w, np.repeat(v, 2, axis=2)))


def test_smoothing():
    votes = jnp.asarray([3.0, 0.0, 0.0, 6.0, 0.0])[None, :, None]
    near(three(votes)[0, :, 0], [1.0, 1.0, 2.0, 2.0, 2.0])
    near(peak_of_neighbors(votes, 3)[0, :, 0], [3.0, 3.0, 6.0, 6.0, 6.0])


def test_a_capacity_of_the_window_alone_is_refused():
    q, k, _ = qkv(1, 20, 1, 2)
    with pytest.raises(ValueError, match="window, capacity: 4, 4; expected 1 <= window < capacity"):
        snapkv(q, k, window=4, capacity=4)
