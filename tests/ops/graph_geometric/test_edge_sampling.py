"""Edge sampling: oracles; even clouds, columns, points in another order, a line's two ends."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.graph_geometric import (
    column_mass,
    global_edge_sampling,
    local_edge_sampling,
    nearest,
)
from tests.helpers import draws, near, run
from tests.ops.plain import softmax

B, T, H, W = 2, 9, 4, 3


def global_edge_sampling_oracle(q, k, v, keep):
    out = []
    for b in range(len(q)):
        A = np.array([softmax(k[b] @ x / np.sqrt(len(x))) for x in q[b]])
        kept = np.argsort(-A.sum(0), kind="stable")[:keep]
        out.append(A[kept] @ v[b])
    return np.array(out)


def local_edge_sampling_oracle(q, k, v, features, keep, count=32):
    out = []
    for b in range(len(q)):
        rows, scores = [], []
        for i, x in enumerate(features[b]):
            js = sorted(range(len(features[b])), key=lambda j: ((features[b, j] - x) ** 2).sum())
            js = js[:count]
            w = softmax((k[b, js] - k[b, i]) @ q[b, i] / np.sqrt(q.shape[-1]))
            rows.append(w @ (v[b, js] - v[b, i]))
            scores.append(np.sqrt((w**2).mean() - w.mean() ** 2))
        out.append(np.array(rows)[np.argsort(-np.array(scores), kind="stable")[:keep]])
    return np.array(out)


def test_all_points_share_the_mass():
    q, k = draws((B, T, H), (B, T, H))
    near(run(column_mass, q, k).sum(1), np.full(B, float(T)))


def test_a_cloud_of_equal_points_is_even():
    (x,) = draws((B, 1, H))
    x = jnp.broadcast_to(x, (B, T, H))
    near(run(column_mass, x, x), np.ones((B, T)))
    near(run(local_edge_sampling, x, x, x, x, keep=3, count=4), np.zeros((B, 3, H)))


def test_points_in_another_order_are_kept_alike():
    q, k, v, x = draws((B, T, H), (B, T, H), (B, T, H), (B, T, W))
    order = np.random.default_rng(1).permutation(T)
    mixed = [a[:, order] for a in (q, k, v, x)]
    near(run(global_edge_sampling, *mixed[:3], keep=4), run(global_edge_sampling, q, k, v, keep=4))
    local = lambda q, k, v, x: run(local_edge_sampling, q, k, v, x, keep=4, count=4)
    near(local(mixed[0], mixed[1], mixed[2], mixed[3]), local(q, k, v, x))


def test_the_points_at_a_step_are_its_edge():
    """Elsewhere all neighbors are alike."""
    line = jnp.arange(9.0)[None, :, None]
    v = jnp.eye(9)[None]
    k = jnp.where(line < 4, 0.0, 1.0) * jnp.eye(9)[0]
    rows = run(local_edge_sampling, jnp.ones_like(v), k, v, line, keep=2, count=3)
    assert (run(nearest, line, count=3)[0, 0] == np.array([0, 1, 2])).all()
    assert sorted(np.argmin(rows[0], axis=-1)) == [3, 4]  # v_j - v_i is -1 at the point itself
