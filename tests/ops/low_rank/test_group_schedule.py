"""RITA's scheduler: the oracle counts pairs; the bound that it keeps; a schedule that falls."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.low_rank import mergeable_groups, next_groups
from tests.helpers import draw, near


def mergeable_groups_oracle(queries, centers, eps=2.0):
    (B, T, N, _), (G, K) = queries.shape, centers.shape[1:3]
    out = np.zeros((B, K))
    for b, g in np.ndindex(B, K):
        own = [queries[b, t, n] for t in range(T) for n in range(N) if n * K // N == g]
        R = math.sqrt(np.mean([x @ x for x in own]))
        d = math.log(eps) / (2 * R)
        for i in range(G):
            gaps = [np.linalg.norm(centers[b, i, g] - centers[b, j, g]) for j in range(i)]
            out[b, g] += any(gap < 2 * d for gap in gaps)
    return out


def test_a_group_may_join_one_that_is_near():
    queries = jnp.ones((1, 2, 1, 4))  # R = 2
    centers = jnp.zeros((1, 4, 1, 4)).at[0, :, 0, 0].set(jnp.asarray([0.0, 0.3, 5.0, 5.4]))
    count = lambda d: float(mergeable_groups(queries, centers, eps=math.exp(4 * d))[0, 0])
    assert [count(d) for d in (0.1, 0.16, 0.21)] == [0, 1, 2]


def test_weights_change_by_eps_at_most_when_keys_move_by_d():
    eps, R = 3.0, 2.0
    d = math.log(eps) / (2 * R)
    q, k, step = (np.asarray(draw(50, 8, seed=i)) for i in range(3))
    q, step = (r * x / np.linalg.norm(x, axis=-1, keepdims=True) for r, x in ((R, q), (d, step)))
    softmax = lambda s: np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    ratio = softmax(q @ (k + step).T) / softmax(q @ k.T)
    assert 1 < ratio.max() <= eps and ratio.min() >= 1 / eps


def test_the_number_of_groups_falls_to_the_least():
    groups = 64.0
    seen = [groups := float(next_groups(groups, jnp.full((2, 3), 0.5 * groups))) for _ in range(9)]
    near(seen[0], 48.0)
    assert seen == sorted(seen, reverse=True) and seen[-1] == 10
    near(next_groups(40.0, jnp.zeros(3)), 40.0)


def test_a_bound_below_one():
    with pytest.raises(ValueError, match=r"eps: 0\.5; expected at least 1"):
        mergeable_groups(jnp.ones((1, 1, 1, 2)), jnp.ones((1, 1, 1, 2)), eps=0.5)
