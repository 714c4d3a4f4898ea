"""SuperGAT: oracles; likelihoods are symmetric, the loss learns which pairs are edges."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.graph_geometric import (
    edge_logits,
    edges_of,
    supergat_loss,
    supergat_mixed,
    supergat_scaled,
)
from tests.helpers import draws, near, run
from tests.ops.graph_geometric.graphs import graph, hears, renamed
from tests.ops.plain import sigmoid, softmax

B, T, N, H = 2, 7, 3, 4


def over_edges(x, edges, score, slope=0.2):
    (B, T, N, _), out = x.shape, np.zeros(x.shape)
    for b, i, n in np.ndindex(B, T, N):
        if found := hears(edges, i):
            s = np.array([score(x[b, i, n], x[b, j, n], n) for _, j in found])
            w = softmax(np.where(s > 0, s, slope * s))
            out[b, i, n] = sum(a * x[b, j, n] for a, (_, j) in zip(w, found, strict=True))
    return out


def supergat_mixed_oracle(x, to, by, edges, slope=0.2):
    score = lambda me, other, n: (to[n] @ me + by[n] @ other) * sigmoid(me @ other)
    return over_edges(x, edges, score, slope)


def supergat_scaled_oracle(x, edges, slope=0.2):
    return over_edges(x, edges, lambda me, other, n: me @ other / np.sqrt(len(me)), slope)


def supergat_loss_oracle(x, edges, absent, scale=1.0):
    (B, T, N, _), terms = x.shape, []
    for pairs, label in ((edges, 1), (absent, 0)):
        for b, i in np.ndindex(B, T):
            for _, j in hears(pairs, i):
                phi = np.mean([scale * (x[b, i, n] @ x[b, j, n]) for n in range(N)])
                p = sigmoid(phi)
                terms.append(-np.log(p if label else 1 - p))
    return np.mean(terms)


def test_both_directions_of_an_edge_are_as_likely():
    (x,) = draws((B, T, N, H))
    there = run(edge_logits, x, edges_of([0, 2], [1, 3]))
    near(there, run(edge_logits, x, edges_of([1, 3], [0, 2])))


def test_descending_the_loss_tells_edges_from_other_pairs():
    (x,) = draws((1, T, N, H))
    edges, absent = edges_of([0, 1, 2, 3], [1, 2, 3, 4]), edges_of([0, 0, 6, 5], [3, 4, 2, 0])
    step = jax.jit(lambda x: x - 0.5 * jax.grad(supergat_loss)(x, edges, absent))
    before = supergat_loss(x, edges, absent)
    for _ in range(60):
        x = step(x)
    assert supergat_loss(x, edges, absent) < 0.3 * before
    mean = lambda pairs: jnp.mean(edge_logits(x, pairs), axis=-1)
    assert mean(edges).min() > mean(absent).max()


def test_nodes_under_other_names_give_the_same():
    (x,), (to, by) = draws((B, T, N, H)), draws((N, H), (N, H), seed=1)
    order, edges = np.random.default_rng(1).permutation(T), graph(T)
    other, y = renamed(edges, order), x[:, order]
    near(run(supergat_mixed, y, to, by, other), run(supergat_mixed, x, to, by, edges)[:, order])
    near(run(supergat_scaled, y, other), run(supergat_scaled, x, edges)[:, order])
    near(run(supergat_loss, y, other, other), run(supergat_loss, x, edges, edges))
