"""The models and measures of the studies of images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax.core.numerics import Affine
from attnjax.ops.attention_free.gated_cnn import GatedCNN, gated_cnn_block
from attnjax.ops.attention_free.metaformer import Norm
from experiments.images import no_ssm, pooling, regions


def made(task, name, seed=0) -> Any:
    return task.arms[name](seed)


def test_models_that_mix_without_parameters_are_as_large():
    [task] = pooling.studied(pooling.Config()).values()
    count = lambda name: sum(
        x.size for x in jax.tree.leaves(nnx.state(made(task, name), nnx.Param))
    )
    assert count("pooling") == count("random") == count("identity")
    assert count("pooling") == pytest.approx(count("attention"), rel=0.1)


def test_a_random_mixer_averages_all_cells_by_a_fixed_matrix():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    mixer: Any = pooling.Random(nnx.Rngs(1))
    weights = np.asarray(mixer.weights[...])
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    wanted = (weights @ np.asarray(x).reshape(2, 64, 3)).reshape(x.shape)
    np.testing.assert_allclose(mixer(x), wanted, atol=1e-5)


def test_the_block_on_a_map_is_the_gated_cnn_block():
    c = no_ssm.Config(width=6)
    block: Any = no_ssm.Block(c, True, False, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 64, 6))
    affine = lambda layer: Affine(layer.kernel[...], layer.bias[...])
    weights = GatedCNN(
        Norm(block.norm.scale[...], block.norm.bias[...]), affine(block.gate), affine(block.value),
        block.kernel[...], jnp.zeros(6), affine(block.out),
    )  # fmt: skip
    wanted = gated_cnn_block(x.reshape(2, 8, 8, 6), weights).reshape(x.shape)
    np.testing.assert_allclose(block(x), wanted, atol=2e-3)  # gelu by tanh


def test_blocks_on_texts_are_causal():
    c = no_ssm.Config(width=6)
    x = jax.random.normal(jax.random.key(0), (1, 12, 6))
    for ssm in (False, True):
        block = no_ssm.Block(c, False, ssm, rngs=nnx.Rngs(0))
        moved = block(x.at[:, 5, 0].add(1.0)) - block(x)
        assert float(jnp.abs(moved[:, :5]).max()) == 0.0
        assert bool((jnp.abs(moved[:, 5:]).max(-1) > 1e-6).all()) or not ssm


def test_the_marked_letter_is_asked_for():
    tokens, wanted, asked = no_ssm.marked(50, 12, 5)(0, 0)
    for row, answers in zip(tokens, wanted, strict=True):
        [place] = np.flatnonzero((row >= 5) & (row < 10))
        assert place < 6 and answers[-1] == row[place] - 5 and row[-1] == 10
    assert asked.sum() == 50 and asked[:, -1].all()


def test_high_frequencies_are_those_of_neighbors_that_differ():
    y, x = np.indices((8, 8))
    maps = lambda image: jnp.asarray(image, jnp.float32).reshape(1, 64, 1, 1) + 3
    assert float(regions.high(maps((-1.0) ** (x + y)))) == pytest.approx(1, abs=1e-5)
    assert float(regions.high(maps(np.sin(2 * np.pi * x / 8)))) == pytest.approx(0, abs=1e-5)
