"""Layers of engine 2: caches, gates, and models that train with them."""

import functools
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import attend, lab, masks
from attnjax.nn import Recipe, Recurrent, recipes
from attnjax.ops import linear_recurrent as ops
from tests.helpers import draw

RECIPES = pytest.mark.parametrize("recipe", recipes.RECIPES.values(), ids=recipes.RECIPES)

# A default run trains a sample; ATTNJAX_LAWS=all (`make laws`) trains with all of them.
ALL = os.environ.get("ATTNJAX_LAWS") == "all"
SAMPLE = ("linear_attention", "gla", "hgrn2", "delta_net", "mlstm", "regla", "titans")
TRAINED = {name: r for name, r in recipes.RECIPES.items() if ALL or name in SAMPLE}


@RECIPES
def test_a_prompt_and_then_single_tokens_give_what_the_whole_gives(recipe):
    graph, params = nnx.split(Recurrent(12, 4, recipe, kv_heads=2, rngs=nnx.Rngs(0)))
    # the memory of titans learns chunk by chunk, so its segments end where a chunk does
    cuts = (0, 16, 19) if recipe is recipes.titans else (0, 4, 5, 6, 7)
    x = draw(2, cuts[-1], 12)

    @jax.jit
    def both(params, x):
        layer, cache, outs = nnx.merge(graph, params), None, []
        for start, stop in itertools.pairwise(cuts):
            out, cache = layer.run(x[:, start:stop], cache)
            outs.append(out)
        return layer(x), jnp.concatenate(outs, axis=1)

    whole, parts = both(params, x)
    np.testing.assert_allclose(parts, whole, rtol=2e-5, atol=2e-5)
    changed, _ = both(params, x.at[:, 4:].add(1.0))
    np.testing.assert_allclose(changed[:, :4], whole[:, :4], rtol=2e-5, atol=2e-5)
    assert jnp.abs(changed[:, 4:] - whole[:, 4:]).max() > 1e-3


@pytest.mark.parametrize("recipe", TRAINED.values(), ids=TRAINED)
def test_a_language_model_learns_with_it(recipe):
    """A few steps on one batch, by all parameters of the layer."""
    shape = lab.Shape(width=8, depth=1, heads=2, length=12)
    graph, params = nnx.split(lab.TinyLM(shape, recipe, vocab=8, rngs=nnx.Rngs(0)))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 8, (4, 13)))

    @jax.jit
    def loss_and_slope(params):
        loss = lambda p: lab.cross_entropy(nnx.merge(graph, p)(tokens[:, :-1])[0], tokens[:, 1:])
        return jax.value_and_grad(lambda p: loss(p).mean())(params)

    losses, slopes = [], None
    for _ in range(12):
        loss, slope = loss_and_slope(params)
        slopes = slopes or slope
        losses.append(float(loss))
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, slope)
    assert losses[-1] < losses[0] - 0.1
    layer = slopes["stack"]["blocks"][0]["attention"]
    silent = [
        jax.tree_util.keystr(path)
        for path, slope in jax.tree_util.tree_leaves_with_path(layer)
        if not jnp.any(slope)
    ]
    # hgrn2 has no keys of its own: 1 - f stands for them
    expected = "k" if recipe is recipes.hgrn2 else None
    assert all(expected and (f"'{expected}'" in name or "[1]" in name) for name in silent), silent


def test_a_layer_is_its_op_between_its_projections():
    layer = Recurrent(12, 4, Recipe(ops.linear_attention, conv=1), rngs=nnx.Rngs(0))
    for kernel in layer.convs:
        kernel[...] = jnp.ones_like(kernel[...])
    x = draw(2, 7, 12)
    heads = ops.linear_attention(layer.q(x), layer.k(x), layer.v(x))
    normed = heads / jnp.sqrt(jnp.square(heads).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layer(x), layer.o(normed), rtol=1e-5, atol=1e-5)


def test_gates_read_the_input_and_begin_at_their_bias():
    layer = Recurrent(12, 4, recipes.gated_delta_net, rngs=nnx.Rngs(0))
    seen = {}

    def op(q, k, v, beta, log_decay, state=None, return_state=True):
        seen.update(beta=beta, log_decay=log_decay)
        return v, state

    layer.recipe = Recipe(op, gates=layer.recipe.gates)
    layer(jnp.zeros((2, 7, 12)))
    np.testing.assert_allclose(seen["beta"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(seen["log_decay"], np.log(1 / (1 + np.exp(-4.0))), rtol=1e-4)
    layer(draw(2, 7, 12))
    assert seen["beta"].shape == seen["log_decay"].shape == (2, 7, 4)
    assert float(jnp.std(seen["beta"])) > 0.01


def test_a_hybrid_stack_takes_its_mixers_in_turn():
    near = functools.partial(attend, mask=masks.causal & masks.window(2))
    shape = lab.Shape(width=8, depth=3, heads=2, length=9)
    model = lab.TinyLM(shape, (near, recipes.delta_net), vocab=8, rngs=nnx.Rngs(0))
    kinds = [type(block.attention) is Recurrent for block in model.stack.blocks]
    assert kinds == [False, True, False]
    assert model(jnp.zeros((2, 9), jnp.int32))[0].shape == (2, 9, 8)


def test_a_convolution_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match=r"conv: got 0, expected at least 1"):
        Recurrent(12, 4, Recipe(ops.linear_attention, conv=0), rngs=nnx.Rngs(0))


def test_packed_texts_are_each_by_itself_also_in_segments():
    """Convolutions, states and gates: nothing crosses from one text to another."""
    layer = Recurrent(12, 4, recipes.gated_delta_net, kv_heads=2, rngs=nnx.Rngs(0))
    ids = np.array([[5] * 4 + [2] * 1 + [9] * 4, [1] * 7 + [0] * 2])
    x = np.random.default_rng(0).normal(size=(2, 9, 12)).astype(np.float32)
    packed, cache = layer.run(x, documents=ids)
    for row in range(2):
        for name in np.unique(ids[row]):
            at = ids[row] == name
            alone = layer.run(x[row : row + 1, at])[0]
            np.testing.assert_allclose(packed[row : row + 1, at], alone, rtol=1e-4, atol=1e-5)
    first, carried = layer.run(x[:, :6], documents=ids[:, :6])
    rest, last = layer.run(x[:, 6:], carried, documents=ids[:, 6:])
    np.testing.assert_allclose(jnp.concatenate([first, rest], 1), packed, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last.state.memory, cache.state.memory, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="expected ids as in the run that left the cache"):
        layer.run(x, cache)
    with pytest.raises(ValueError, match="ids beside the cache of a run without"):
        layer.run(x, layer.run(x)[1], documents=ids)
