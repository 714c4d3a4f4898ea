"""What the studies of theory draw, and the models written for them, beside loops."""

import itertools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.theory import (
    conditioning,
    deconstructed,
    farthest,
    random_features,
    regression_heads,
    triples,
)


def test_prompts_have_the_labels_of_a_linear_function():
    shown, label = regression_heads.prompts(8, 12, 3, 0.0)(0, 1)
    for z, y in zip(shown, label, strict=True):
        beta = np.linalg.lstsq(z[:-1, :-1], z[:-1, -1], rcond=None)[0]
        np.testing.assert_allclose(z[-1, :-1] @ beta, y, atol=1e-4)
        assert z[-1, -1] == 0
    found = regression_heads.Ridge(1e-3)(jnp.asarray(shown))
    np.testing.assert_allclose(found, label, atol=1e-3)


def test_heads_and_descent_are_their_formulas():
    shown, _ = regression_heads.prompts(4, 6, 2, 0.1)(0, 0)
    model: Any = regression_heads.Heads(
        2, 3, regression_heads.normalizers.softmax, rngs=nnx.Rngs(0)
    )
    wanted = np.zeros(4)
    scores, values = np.asarray(model.scores[...]), np.asarray(model.values[...])
    for b, h in itertools.product(range(4), range(2)):
        weights = np.exp([shown[b, -1] @ scores[h] @ z for z in shown[b]])
        wanted[b] += (weights / weights.sum()) @ (shown[b] @ values[h])
    np.testing.assert_allclose(model(jnp.asarray(shown)), wanted, atol=1e-5)
    x, y = shown[:, :-1, :-1], shown[:, :-1, -1]
    step = [
        sum((x[b, i] - x[b].mean(0)) @ shown[b, -1, :-1] * y[b, i] for i in range(6)) / 6
        for b in range(4)
    ]
    np.testing.assert_allclose(regression_heads.Descent()(jnp.asarray(shown)), step, atol=1e-5)


def test_the_farthest_point_is_of_the_smallest_product():
    x, far = farthest.sphere(3, 5, 4)(0, 0)
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, atol=1e-6)
    for points, answers in zip(x, far, strict=True):
        for one, answer in zip(points, answers, strict=True):
            assert answer @ one == min(other @ one for other in points)


def test_triples_are_those_of_all_loops():
    x, found, asked = triples.matches(20, 4, 11)(0, 0)
    for row, answers in zip(x, found, strict=True):
        for a, answer in zip(row, answers, strict=True):
            assert answer == any((a + b + c) % 11 == 0 for b in row for c in row)
    assert asked.all() and 0.1 < found.mean() < 0.9


def test_attention_to_pairs_is_a_softmax_over_both_indices():
    q, k, v, k2, v2 = jax.random.normal(jax.random.key(0), (5, 2, 4, 2, 3))
    scores = jnp.einsum("BTNH,BaNH,BbNH->BNTab", q, k, k2) / np.sqrt(3)
    weights = jax.nn.softmax(scores.reshape(2, 2, 4, 16), -1).reshape(scores.shape)
    wanted = jnp.einsum("BNTab,BaNH,BbNH->BTNH", weights, v, v2)
    np.testing.assert_allclose(triples.third(q, k, v, k2, v2), wanted, atol=1e-5)


def test_memories_are_sums_and_corrections():
    q, k, v = jax.random.normal(jax.random.key(1), (3, 1, 5, 1, 4))
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    state, corrected = np.zeros((4, 4)), np.zeros((4, 4))
    for one, value in zip(np.asarray(k[0, :, 0]), np.asarray(v[0, :, 0]), strict=True):
        state += np.outer(one, value)
        corrected += np.outer(one, value - one @ corrected)
    for read, wanted in ((conditioning.hebbian, state), (conditioning.delta, corrected)):
        np.testing.assert_allclose(read(q, k, v)[0, :, 0], q[0, :, 0] @ wanted, atol=1e-5)


def test_random_heads_are_averages_of_relu_weights():
    x = jax.random.normal(jax.random.key(0), (3, 5, 2))
    weights = jax.random.normal(jax.random.key(1), (4, 3, 3))
    found = random_features.heads(weights, x).reshape(3, 4, 3)
    for b, m in itertools.product(range(3), range(4)):
        ones = [np.append(np.asarray(token), 1.0) for token in x[b]]
        wanted = sum(max(ones[0] @ np.asarray(weights[m]) @ one, 0) * one for one in ones[1:]) / 4
        np.testing.assert_allclose(found[b, m], wanted, atol=1e-5)


def test_pairs_are_asked_for_their_values():
    tokens, wanted, asked = deconstructed.paired(3, 4, 8)(0, 1)
    for row, answers, where in zip(tokens, wanted, asked, strict=True):
        values = {token // 8: token % 8 for token in row[:4]}
        assert len(values) == 4 and where.tolist() == [False] * 4 + [True] * 4
        assert [values[token - 64] for token in row[4:]] == answers[4:].tolist()


def test_maps_of_a_fixed_text_do_not_depend_on_the_input():
    c = replace(deconstructed.QUICK, width=8, pairs=3, judged=2, simple=("of noise", "of a text"))
    [task] = deconstructed.studied(c).values()
    for name in c.simple:
        make: Any = task.arms[name]
        model = make(0)
        one, other = jax.random.randint(jax.random.key(0), (2, 3, 6), 0, 72)
        seen = model(one)[1], model(other)[1]
        assert model(one)[0].shape == (3, 6, 72)
        for part in "qk":
            np.testing.assert_array_equal(seen[0][part][:, 0], seen[1][part][:, 0])
            assert (seen[0][part][:, 1:] != seen[1][part][:, 1:]).any()
