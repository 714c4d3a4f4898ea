"""What the studies of softmax attention draw and compare with, beside loops."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.core import _gru, aaren, languages, normalized_rows, pointers, rectified


def test_the_recurrent_layer_is_a_gated_recurrent_unit():
    rng = np.random.default_rng(0)
    layer: Any = _gru.GRU(4, rngs=nnx.Rngs(0))
    x = rng.standard_normal((2, 5, 4)).astype(np.float32)
    learned = layer.seen.kernel, layer.seen.bias, layer.kept.kernel
    w, b, u = (np.asarray(p[...], np.float64) for p in learned)
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    h = np.zeros((2, 4))
    for t in range(5):
        (xz, xr, xn), (hz, hr, hn) = (np.split(a, 3, -1) for a in (x[:, t] @ w + b, h @ u))
        new = np.tanh(xn + sigmoid(xr + hr) * hn)
        h = (1 - sigmoid(xz + hz)) * new + sigmoid(xz + hz) * h
        np.testing.assert_allclose(layer(x)[:, t], h, atol=1e-6)


def test_a_translation_is_the_source_backwards_word_by_word():
    shown, wanted, asked = rectified.translation(32, 5, 7)(1, 2)
    assert shown.shape == wanted.shape == asked.shape == (32, 10)
    source, words = shown[:, :5], {}
    assert (shown[:, 5] == 14).all() and (asked == [[False] * 5 + [True] * 5] * 32).all()
    for row, target in zip(source, wanted[:, 5:], strict=True):
        for one, other in zip(row[::-1], target, strict=True):
            assert words.setdefault(int(one), int(other)) == other and 7 <= other < 14
    assert len(set(words.values())) == len(words) == 7
    assert (shown[:, 6:] == wanted[:, 5:-1]).all()


def test_statistics_of_maps_see_zeros_alignment_and_heads_that_differ():
    length = 3
    maps = np.zeros((1, 2, 2, 6, 6), np.float32)
    for i in range(length):  # head 0 looks at the source word, head 1 at the bar, half as much
        maps[:, :, 0, length + i, length - 1 - i] = 1.0
        maps[:, :, 1, length + i, length] = 0.5
    seen = rectified.maps_seen(length, jnp.asarray(maps))
    allowed = 4 + 5 + 6
    assert float(seen["aligned"]) == 1.0 and float(seen["nothing"]) == 0.0
    assert float(seen["zeros"]) == pytest.approx((allowed - 3) / allowed)
    assert float(seen["diversity"]) == pytest.approx(np.log(2), abs=1e-5)
    maps[:, :, 1] = 0.0
    assert float(rectified.maps_seen(length, jnp.asarray(maps))["nothing"]) == 0.5


def test_levels_of_a_series_are_those_of_two_sines():
    (levels,) = aaren.series(64, 40, 16)(0, 3)
    assert levels.shape == (64, 41) and levels.min() >= 0 and levels.max() < 16
    smooth = np.abs(np.diff(levels, axis=1)).mean()
    assert 0.3 < smooth < np.abs(levels[:, 1:] - levels[::-1, :-1]).mean() / 1.5


def test_the_answer_is_the_smallest_or_the_largest_number():
    tokens, wanted, asked = normalized_rows.extremes(64, 5, 12)(0, 1)
    for row, answers, where in zip(tokens, wanted, asked, strict=True):
        assert where.tolist() == [False] * 5 + [True] and len(set(row[:5])) == 5
        assert answers[-1] == (max if row[-1] == 13 else min)(row[:5])


def test_hulls_have_every_point_on_their_left():
    points, wanted = pointers.hulls(40, 4, 9)(0, 5)
    for x, row in zip(points.astype(np.float64), wanted, strict=True):
        assert (np.diff(x[:, 0]) >= 0).all()
        n = int((row > 0).sum())
        found = row[:n] - 1
        assert (row[n:] == 0).all() and len(set(found)) == n and found[0] == 0
        edges = {(int(a), int(b)) for a, b in zip(found, np.roll(found, -1), strict=True)}
        brute = {
            (a, b)
            for a in range(len(x))
            for b in range(len(x))
            if a != b
            and all(pointers._left(x[a], x[b], x[c]) > 0 for c in range(len(x)) if c not in (a, b))
        }
        assert edges == brute


def test_a_pointer_is_told_the_answers_in_training_and_its_own_choices_after():
    model = pointers.Network(8, None, rngs=nnx.Rngs(0))
    points, wanted = pointers.hulls(3, 4, 4)(0, 0)
    logs, best = model(jnp.asarray(points), None)
    np.testing.assert_allclose(jnp.exp(logs).sum(-1), 1, atol=1e-5)
    again, _ = model(jnp.asarray(points), best)
    np.testing.assert_allclose(logs, again, atol=1e-5)
    told, _ = model(jnp.asarray(points), jnp.asarray(wanted))
    np.testing.assert_allclose(told[:, 0], logs[:, 0], atol=1e-6)


@pytest.mark.parametrize("language", languages.TRUTH)
def test_strings_are_all_of_them(language):
    every = languages.strings(4)
    assert {n: len({tuple(row) for row in x}) for n, x in every.items()} == {2: 4, 3: 8, 4: 16}
    accepts = languages.ENCODERS[language]
    op = languages.HARD["average"]
    for x in every.values():
        truth = [languages.TRUTH[language]("".join("01"[int(b)] for b in row)) for row in x]
        assert np.asarray(accepts(op, jnp.asarray(x))).tolist() == truth
