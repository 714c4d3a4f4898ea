"""Edges: oracles; the dense form in value and gradient, padding, order, graphs of each example."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import attend, masks
from attnjax.ops.graph_geometric import (
    edges_of,
    neighbor_attention,
    neighbor_distillation,
    neighbor_scores,
    segment_softmax,
    with_self_loops,
)
from tests.helpers import draws, near, qkv, run
from tests.ops.graph_geometric.graphs import dense, graph, hears, renamed
from tests.ops.plain import softmax

B, T, S, N, H = 2, 7, 9, 2, 4


def neighbor_attention_oracle(q, k, v, edges):
    (B, T, N, H), D = q.shape, v.shape[-1]
    out = np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        if found := hears(edges, i):
            w = softmax(np.array([q[b, i, n] @ k[b, j, n] / np.sqrt(H) for _, j in found]))
            out[b, i, n] = sum(a * v[b, j, n] for a, (_, j) in zip(w, found, strict=True))
    return out


def neighbor_distillation_oracle(q, k, teacher, edges):
    (B, T, N, H), total, count = q.shape, 0.0, 0
    for b, i in np.ndindex(B, T):
        if found := hears(edges, i):
            rows = [
                softmax(np.array([q[b, i, n] @ k[b, j, n] / np.sqrt(H) for _, j in found]))
                for n in range(N)
            ]
            ours = np.mean(rows, axis=0)
            theirs = teacher[b, [e for e, _ in found]].mean(-1)
            total += (theirs * np.log(theirs / ours)).sum()
            count += 1
    return total / count


def test_edges_are_a_mask_of_pairs():
    """In value and in every gradient."""
    q, k, v = qkv(B, T, N, H, S=S)
    edges = graph(T, S)
    seen = masks.array(dense(edges, T, S)[None, None])
    wave = lambda f: lambda *x: jnp.sum(jnp.cos(f(*x)))
    both = lambda f: jax.jit(jax.value_and_grad(wave(f), (0, 1, 2)))(q, k, v)
    near(
        both(lambda q, k, v: neighbor_attention(q, k, v, edges)),
        both(lambda *x: attend(*x, mask=seen)),
        1e-5,
    )


def test_edges_in_any_order_are_the_same_and_two_count_twice():
    q, k, v = qkv(1, 3, 1, H)
    senders, receivers = np.array([0, 1, 1, 2, 2]), np.array([0, 0, 0, 2, 1])
    out = [
        run(neighbor_attention, q, k, v, edges_of(senders[o], receivers[o]))
        for o in (np.arange(5), np.array([4, 2, 0, 3, 1]))
    ]
    near(out[0], out[1])
    scores = jnp.array([q[0, 0, 0] @ k[0, j, 0] / 2 for j in (0, 1, 1)])
    near(out[0][0, 0, 0], jax.nn.softmax(scores) @ v[0, np.array([0, 1, 1]), 0])


def test_padding_is_nowhere_even_as_nan_or_infinity():
    q, k, v = qkv(B, T, N, H)
    k, v = k.at[:, 0].set(jnp.nan), v.at[:, 0].set(jnp.inf)
    senders, receivers = np.array([1, 2, 0, 0]), np.array([3, 3, 3, 5])
    some = edges_of(senders, receivers, np.array([True, True, False, False]))
    loss = lambda q, k, v: jnp.sum(neighbor_attention(q, k, v, some))
    out, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)
    near(out, run(loss, q, k.at[:, 0].set(0), v.at[:, 0].set(0)))
    assert all(np.isfinite(g).all() for g in grads)


def test_weights_of_a_node_sum_to_one_however_large_its_scores():
    edges = graph(T)
    (scores,) = draws((B, len(edges.valid), N), scale=300.0)
    weights = np.asarray(segment_softmax(scores, edges, T))
    for i in range(T):
        if found := hears(edges, i):
            near(weights[:, [e for e, _ in found]].sum(1), np.ones((B, N)))
    assert not weights[:, ~np.asarray(edges.valid)].any()


def test_each_example_may_have_its_own_graph():
    q, k, v = qkv(B, T, N, H)
    one, other = graph(T), renamed(graph(T), np.arange(T)[::-1])
    E = max(len(one.valid), len(other.valid))
    pad = lambda x: np.pad(np.asarray(x), (0, E - len(x)))
    both = jax.tree.map(lambda x, y: np.stack([pad(x), pad(y)]), one, other)
    batch = edges_of(both.senders, both.receivers, both.valid)
    out = run(neighbor_attention, q, k, v, batch)
    for b, g in enumerate((one, other)):
        near(out[b], run(neighbor_attention, q, k, v, g)[b])


def test_nodes_under_other_names_give_the_same():
    q, k, v = qkv(B, T, N, H)
    order, edges = np.random.default_rng(1).permutation(T), graph(T)
    mixed = [x[:, order] for x in (q, k, v)]
    out = run(neighbor_attention, *mixed, renamed(edges, order))
    near(out, run(neighbor_attention, q, k, v, edges)[:, order])


def test_self_loops_are_one_for_each_node():
    edges = with_self_loops(edges_of([0, 1, 2, 2], [0, 2, 2, 1]), 4)
    assert (
        dense(edges, 4, 4) == np.eye(4, dtype=bool) | (dense(edges_of([1, 2], [2, 1]), 4, 4))
    ).all()
    assert sum(len(hears(edges, i)) for i in range(4)) == 6


def test_a_teacher_with_the_same_weights_asks_for_nothing():
    q, k, _ = qkv(B, T, N, H)
    edges = graph(T)
    teacher = segment_softmax(neighbor_scores(q, k, edges), edges, T)
    near(run(neighbor_distillation, q, k, teacher, edges), 0.0)
    assert run(neighbor_distillation, 2 * q, k, teacher, edges) > 1e-3
