"""GAT: its oracle; every node ranks the same neighbors alike; other names of nodes."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.graph_geometric import gat_attention
from attnjax.ops.graph_geometric.edges import all_pairs
from tests.helpers import draws, near, run
from tests.ops.graph_geometric.graphs import graph, hears, renamed
from tests.ops.plain import softmax

B, T, N, H = 2, 7, 3, 4


def leaky(x, slope=0.2):
    return np.where(x > 0, x, slope * x)


def gat_attention_oracle(q, k, to, by, edges, slope=0.2):
    (B, T, N, _), out = q.shape, np.zeros(q.shape)
    for b, i, n in np.ndindex(B, T, N):
        if found := hears(edges, i):
            s = [leaky(to[n] @ q[b, i, n] + by[n] @ k[b, j, n], slope) for _, j in found]
            w = softmax(np.array(s))
            out[b, i, n] = sum(a * k[b, j, n] for a, (_, j) in zip(w, found, strict=True))
    return out


def test_all_nodes_of_a_complete_graph_have_the_same_favorite():
    q, k = draws((1, T, 1, H), (1, 5, 1, H))
    to, by = draws((1, H), (1, H), seed=1, scale=3.0)
    edges = all_pairs({"T": T, "S": 5})
    marked = jnp.concatenate([k, 0.01 * jnp.eye(5)[None, :, None]], axis=-1)
    wider = lambda x: jnp.pad(x, ((0, 0), (0, 5)))
    q = jnp.pad(q, ((0, 0), (0, 0), (0, 0), (0, 5)))
    out = run(gat_attention, q, marked, wider(to), wider(by), edges)
    assert np.ptp(np.argmax(out[0, :, 0, H:], axis=-1)) == 0


def test_nodes_under_other_names_give_the_same():
    (x,), (to, by) = draws((B, T, N, H)), draws((N, H), (N, H), seed=1)
    order, edges = np.random.default_rng(1).permutation(T), graph(T)
    out = run(gat_attention, x[:, order], x[:, order], to, by, renamed(edges, order))
    near(out, run(gat_attention, x, x, to, by, edges)[:, order])
