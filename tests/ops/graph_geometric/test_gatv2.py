"""GATv2: its oracle; nodes with favorites of their own, features of edges, the dense form."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import attend, masks, mods
from attnjax.ops.graph_geometric import gat_attention, gatv2_attention
from attnjax.ops.graph_geometric.edges import all_pairs
from tests.helpers import draws, near, run
from tests.ops.graph_geometric.graphs import dense, graph, hears, renamed
from tests.ops.plain import softmax

B, T, S, N, H = 2, 7, 9, 3, 4


def leaky(x, slope=0.2):
    return np.where(x > 0, x, slope * x)


def gatv2_attention_oracle(q, k, weight, edges, features=None, slope=0.2):
    (B, T, N, _), out = q.shape, np.zeros(q.shape)
    for b, i, n in np.ndindex(B, T, N):
        if found := hears(edges, i):
            more = [0.0 if features is None else features[b, e, n] for e, _ in found]
            sums = [q[b, i, n] + k[b, j, n] + f for f, (_, j) in zip(more, found, strict=True)]
            w = softmax(np.array([weight[n] @ leaky(x, slope) for x in sums]))
            out[b, i, n] = sum(a * k[b, j, n] for a, (_, j) in zip(w, found, strict=True))
    return out


def test_a_node_may_have_any_favorite():
    """The k-th node looks for the k-th sender: what no GAT can do on a complete graph."""
    n = 5
    edges = all_pairs({"T": n, "S": n})
    one_hot = jnp.eye(n)[None, :, None]
    weight = jnp.full((1, n), -20.0)
    out = run(gatv2_attention, one_hot, -one_hot, weight, edges)  # fewest positive sums where equal
    assert (np.argmin(out[0, :, 0], axis=-1) == np.arange(n)).all()
    near(-out[0, :, 0], np.eye(n), 1e-3)
    static = run(gat_attention, one_hot, -one_hot, weight, weight, edges)
    assert np.ptp(np.asarray(static[0, :, 0]), axis=0).max() < 1e-3


def test_it_is_additive_attention_under_a_mask_of_pairs():
    q, k = draws((B, T, N, H), (B, S, N, H))
    (weight,) = draws((N, H), seed=1)
    edges = graph(T, S)
    bend = lambda x: jnp.where(x > 0, x, 0.2 * x)
    scores = jnp.einsum("BTSNH,NH->BNTS", bend(q[:, :, None] + k[:, None]), weight)
    seen = masks.array(dense(edges, T, S)[None, None])
    nothing = jnp.zeros_like
    bias = mods.pair_bias(scores)
    want = jax.jit(lambda: attend(nothing(q), nothing(k), k, mods=(bias,), mask=seen))()
    near(run(gatv2_attention, q, k, weight, edges), want)


def test_features_of_edges_move_their_scores():
    q, k = draws((B, T, N, H), (B, T, N, H))
    (weight,) = draws((N, H), seed=1)
    edges = graph(T)
    (features,) = draws((B, len(edges.valid), N, H), seed=2)
    got = run(gatv2_attention, q, k, weight, edges, features=features)
    q, k, weight, features = map(np.asarray, (q, k, weight, features))
    near(got, gatv2_attention_oracle(q, k, weight, edges, features))


def test_nodes_under_other_names_give_the_same():
    (x,), (weight,) = draws((B, T, N, H)), draws((N, H), seed=1)
    order, edges = np.random.default_rng(1).permutation(T), graph(T)
    out = run(gatv2_attention, x[:, order], 2 * x[:, order], weight, renamed(edges, order))
    near(out, run(gatv2_attention, x, 2 * x, weight, edges)[:, order])
