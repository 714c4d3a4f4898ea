"""Hop windows: the oracle; windows grow to all nodes, text keeps its rows, both ways."""

import jax.numpy as jnp
import numpy as np

from attnjax import masks
from attnjax.ops.graph_geometric import hop_attention, node_pairs, within
from tests.helpers import near, run, weights_of
from tests.laws.cases import BY_NAME
from tests.ops.plain import blend, causal, weights

OP = BY_NAME["hop_attention"]


def hop_attention_oracle(q, k, v, nodes, reach, allowed=None):
    T = q.shape[1]
    ok = np.broadcast_to(causal(T, T) if allowed is None else allowed, (len(q), 1, T, T)).copy()
    for i, j in np.ndindex(T, T):
        if nodes[i] >= 0 and nodes[j] >= 0 and not reach[nodes[i]][nodes[j]]:
            ok[:, :, i, j] = False
    return blend(weights(q, k, ok), v)


def test_a_window_grows_by_a_hop_and_ends_with_all_nodes():
    path = np.eye(6, k=1)
    apart = abs(np.arange(6)[:, None] - np.arange(6))
    for hops in (1, 2, 5):
        assert (within(path, hops) == (apart <= hops)).all()
    order = np.random.default_rng(0).permutation(6)
    mixed = path[order][:, order]
    assert (within(mixed, 2) == within(path, 2)[order][:, order]).all()


def test_both_ways_between_nodes_and_text_as_it_was():
    args = OP.sample(seed=2)
    q, k, nodes, reach = (args[n] for n in ("q", "k", "nodes", "reach"))
    both = masks.causal | node_pairs(nodes)
    op = lambda q, k, v: hop_attention(q, k, v, nodes, reach, mask=both)
    seen = weights_of(op, q, k) > 0
    of_nodes = np.asarray(nodes) >= 0
    pairs = np.asarray(reach)[nodes[:, None], nodes] & of_nodes[:, None] & of_nodes
    assert (seen[:, :, of_nodes][..., of_nodes] == pairs[of_nodes][:, of_nodes]).all()
    assert (seen[:, :, ~of_nodes] == np.tri(9, dtype=bool)[~of_nodes]).all()
    near(run(OP.fn, **args)[:, ~of_nodes], run(op, q, k, args["v"])[:, ~of_nodes])
    assert jnp.isfinite(run(op, q, k, args["v"])).all()
