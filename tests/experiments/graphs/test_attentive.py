"""The tasks of `graphs.attentive`: answers by looking them up, links, and weights of a layer."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import nn
from attnjax.experiments.graphs import attentive
from tests.helpers import draw, near

CONFIG = replace(attentive.QUICK, nodes=6)


def test_values_are_those_of_the_keys():
    nodes, values = attentive.dictionary(0, 3, 4, 5)
    assert nodes.shape == (4, 10, 10) and values.shape == (4, 5)
    for graph, answers in zip(nodes, values, strict=True):
        told = {row[:5].argmax(): row[5:].argmax() for row in graph[5:]}
        assert [told[row[:5].argmax()] for row in graph[:5]] == answers.tolist()
        assert (graph[:5, 5:] == 0).all() and sorted(answers) == list(range(5))


def test_friends_are_linked_both_ways_and_more_often():
    _, classes, linked = attentive.friends(0, 0, 200, CONFIG)
    assert (linked == linked.swapaxes(1, 2)).all() and not linked[:, *2 * [np.arange(6)]].any()
    same = classes[:, :, None] == classes[:, None]
    apart = ~np.eye(6, dtype=bool)
    near(linked[same & apart].mean(), CONFIG.linked, 0.05)
    near(linked[~same].mean(), CONFIG.mislinked, 0.05)


def test_the_weights_that_are_looked_at_are_those_of_the_layer():
    there = np.random.default_rng(0).random((2, 5, 5)) < 0.5
    edges = attentive.pairs(jnp.asarray(there | np.eye(5, dtype=bool)))
    x = draw(2, 5, 3)
    for op in (attentive.gat, attentive.supergat):
        layer = nn.GraphLayer(3, 2, 4, op, rngs=nnx.Rngs(0))
        h = layer.project(x)[1]
        w = attentive.weights(layer, h, edges)[..., None] * attentive.graphs.of_senders(h, edges)
        near(attentive.graphs.edge_sum(w, edges, 5).reshape(2, 5, 8), layer(x, edges))
