"""Layers of windows and of graphs: what they compute, and that a step of training helps."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import lab
from attnjax.nn import GraphLayer, GraphNet, swin
from attnjax.ops import graph_geometric as graphs
from tests.helpers import draw, draws, near, run
from tests.ops.local_structured.test_grids import window_attention_oracle

gat = lambda q, k, to, by, edges: graphs.gat_attention(k, k, to, by, edges)
gatv2 = lambda q, k, to, by, edges: graphs.gatv2_attention(q, k, to, edges)


def falls(model, loss):
    """Whether one step down the gradient lowers the loss, and moves every parameter."""
    graph, params = nnx.split(model)
    of = lambda p: loss(nnx.merge(graph, p))

    @jax.jit
    def step(p):
        before, slopes = jax.value_and_grad(of)(p)
        return before, of(jax.tree.map(lambda x, g: x - 0.05 * g, p, slopes)), slopes

    before, after, slopes = step(params)
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(slopes))
    assert after < before


def test_every_second_layer_of_windows_is_shifted():
    first, second = swin((4, 6), 2, 2, 2)
    q, k, v = draws(*3 * ((1, 24, 2, 4),))
    for layer, shift in ((first, 0), (second, 1)):
        table = draw(2, 3, 3)
        layer.table[...] = table
        given = {"shape": (4, 6), "window": 2, "shift": shift}
        want = window_attention_oracle(*map(np.asarray, (q, k, v)), **given, table=table)
        near(layer(q, k, v), want)
    assert [x.shift for x in swin((2, 6), 2, 2, 3)] == [0, (0, 1), 0]


def test_a_stack_of_windows_learns_digits():
    images = lab.digits()
    shape = lab.Shape(8, 2, 2, 16)
    model = lab.TinyViT(shape, swin((4, 4), 2, 2, 2), rngs=nnx.Rngs(0))
    x, y = images.train[:32], images.train_labels[:32]
    falls(model, lambda m: lab.cross_entropy(m(x)[0], y).mean())


def test_a_layer_is_its_op_between_its_maps():
    edges = graphs.edges_of([0, 1, 2, 0], [1, 2, 0, 2])
    x = draw(2, 3, 5)
    for op in (gat, gatv2):
        layer = GraphLayer(5, 2, 4, op, rngs=nnx.Rngs(0))
        q, k = (
            np.einsum("btc,cd->btd", x, m.kernel[...]).reshape(2, 3, 2, 4)
            for m in (layer.receivers, layer.senders)
        )
        want = op(q, k, layer.to[...], layer.by[...], edges)
        near(run(lambda x, layer=layer: layer(x, edges), x), np.reshape(want, (2, 3, 8)))


def test_a_net_learns_a_graph():
    edges = graphs.with_self_loops(graphs.edges_of([0, 1, 2, 3], [1, 2, 3, 0]), 4)
    both = lambda q, k, to, by, edges: gat(q, k, to, by, edges) + gatv2(q, k, to, by, edges)
    net = GraphNet(3, 2, [both, both], heads=2, width=4, rngs=nnx.Rngs(0))
    x, wanted = draw(2, 4, 3), np.array([[0, 1, 1, 0], [1, 0, 1, 0]])
    assert net(x, edges).shape == (2, 4, 2) and len(net.hidden(x, edges)) == 3
    falls(net, lambda m: lab.cross_entropy(m(x, edges), wanted).mean())
