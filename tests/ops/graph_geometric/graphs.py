"""Graphs for tests: neighbors as lists, dense masks, nodes under other names."""

import numpy as np

from attnjax.ops.graph_geometric import edges_of
from attnjax.ops.graph_geometric.edges import drawn_edges


def graph(T, S=None):
    """The edges that records draw for T nodes and S senders."""
    return drawn_edges({"T": T, "S": S or T})


def hears(edges, i):
    """[(edge, sender)] of a node."""
    senders, receivers, valid = map(np.asarray, (edges.senders, edges.receivers, edges.valid))
    return [(int(e), int(senders[e])) for e in np.flatnonzero(valid & (receivers == i))]


def dense(edges, T, S):
    """(T,S): which pairs are an edge."""
    seen = np.zeros((T, S), bool)
    for i in range(T):
        seen[i, [s for _, s in hears(edges, i)]] = True
    return seen


def renamed(edges, order):
    """The same graph where node order[i] is called i."""
    place, ok = np.argsort(order), np.asarray(edges.valid)
    ends = (np.asarray(x)[ok] for x in (edges.senders, edges.receivers))
    return edges_of(*(place[x] for x in ends))
