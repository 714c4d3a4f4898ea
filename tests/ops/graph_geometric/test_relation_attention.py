"""LATTE: oracles; relations that a node has not, chains, nodes under other names."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.graph_geometric import (
    chained,
    edges_of,
    proximity_loss,
    relation_attention,
    relation_scores,
    relation_weights,
)
from tests.helpers import near, run
from tests.laws.cases import BY_NAME
from tests.ops.graph_geometric.graphs import dense, graph, hears, renamed
from tests.ops.plain import sigmoid, softmax

OP = BY_NAME["relation_attention"]


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def relation_attention_oracle(q, k, to, by, sharp, choice, edges):
    (B, T, N, _), out = q.shape, np.zeros(q.shape)
    for b, i in np.ndindex(B, T):
        chosen = softmax(choice[b, i])
        out[b, i] = chosen[-1] * q[b, i]
        for r, of_r in enumerate(edges):
            found = hears(of_r, i)
            for n in range(N if found else 0):
                s = [leaky(to[r, n] @ q[b, i, n] + by[r, n] @ k[b, j, n]) for _, j in found]
                w = softmax(sharp[r] * np.array(s))
                z = sum(a * k[b, j, n] for a, (_, j) in zip(w, found, strict=True))
                out[b, i, n] += chosen[r] * z
    return out


def proximity_loss_oracle(q, k, to, by, sharp, edges, absent):
    B, T, N, _ = q.shape
    total = 0.0
    for pairs, label in ((edges, 1), (absent, 0)):
        for r, of_r in enumerate(pairs):
            terms = []
            for b, i in np.ndindex(B, T):
                for _, j in hears(of_r, i):
                    raw = max(to[r, n] @ q[b, i, n] + by[r, n] @ k[b, j, n] for n in range(N))
                    p = sigmoid(sharp[r] * leaky(raw))
                    terms.append(-np.log(p if label else 1 - p))
            total += np.mean(terms)
    return total / (2 * len(edges))


def test_a_relation_without_edges_gives_zero_and_one_that_is_not_nothing():
    args = OP.sample(seed=2)
    alone = 1  # hears nobody, in any relation
    own = jnp.exp(args["choice"][:, alone, -1]) / jnp.exp(args["choice"][:, alone]).sum(-1)
    near(run(OP.fn, **args)[:, alone], own[:, None, None] * args["q"][:, alone])
    without = args | {"choice": args["choice"].at[..., 1].set(-jnp.inf)}
    changed = without | {"to": args["to"].at[1].multiply(3.0)}
    near(run(OP.fn, **without), run(OP.fn, **changed))


def test_nodes_under_other_names():
    args = OP.sample(seed=3)
    order = np.random.default_rng(1).permutation(9)
    mixed = args | {n: args[n][:, order] for n in ("q", "k", "choice")}
    mixed["edges"] = tuple(renamed(e, order) for e in args["edges"])
    near(run(relation_attention, **mixed), run(relation_attention, **args)[:, order])


def test_a_chain_is_the_boolean_product_of_its_relations():
    first, second = graph(6), graph(6, 5)
    every = chained(first, np.ones(len(first.valid)), second)
    want = dense(first, 6, 6).astype(int) @ dense(second, 6, 6) > 0
    assert (dense(every, 6, 6) == want).all()
    weights = np.random.default_rng(0).random(len(first.valid))
    few = chained(first, weights, second, threshold=0.6)
    seen = np.zeros((6, 6), bool)
    for i in range(6):
        seen[i, [j for e, j in hears(first, i) if weights[e] >= 0.6]] = True
    assert (dense(few, 6, 6) == (seen.astype(int) @ dense(second, 6, 6) > 0)).all()
    none = chained(first, weights, second, threshold=2.0)
    assert dense(none, 6, 6).any(axis=1).sum() <= 1


def test_what_chains_are_cut_by_is_the_largest_weight_of_the_heads():
    args = OP.sample(seed=4)
    edges = args["edges"][0]
    vectors = args["to"][0], args["by"][0], args["sharp"][0]
    scores = relation_scores(args["q"], args["k"], *vectors, edges)
    weights = np.asarray(relation_weights(scores, edges, 9))
    for i in range(9):
        if found := [e for e, _ in hears(edges, i)]:
            rows = np.asarray(scores)[:, found]
            w = np.exp(rows - rows.max(1, keepdims=True))
            near(weights[:, found], (w / w.sum(1, keepdims=True)).max(-1))


def test_edges_are_likelier_than_other_pairs_where_they_agree():
    args = BY_NAME["proximity_loss"].sample(seed=5)
    q = jnp.ones_like(args["q"])
    ones = {n: jnp.ones_like(args[n]) for n in ("to", "by", "sharp")}
    some, other = (edges_of([0, 1], [1, 2]),) * 2, (edges_of([3, 3], [4, 5]),) * 2
    k = q.at[:, 3].multiply(-3.0)
    good = run(proximity_loss, q, k, **ones, edges=some, absent=other)
    assert good < np.log(2) < run(proximity_loss, q, k, **ones, edges=other, absent=some)
