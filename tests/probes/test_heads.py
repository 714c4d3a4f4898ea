"""Patterns, distances and words of heads, guides and penalties, against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attention_weights, masks
from attnjax.probes.deception import forbidden_penalty, mass_penalty
from attnjax.probes.guides import attention_score, emitted, heads_won, to_pronoun
from attnjax.probes.heads import (
    best_offset,
    duplicate,
    head_accuracy,
    head_distances,
    hops,
    induction,
    pattern_score,
    previous,
    word_maps,
)
from tests.helpers import near, qkv


def maps_of(*shape, seed=0):
    raw = np.random.default_rng(seed).random((*shape, shape[-1])) + 0.01
    return raw / raw.sum(-1, keepdims=True)


def test_patterns_are_those_of_their_definitions():
    tokens = np.asarray([[3, 5, 3, 3, 7, 5, 3], [1, 2, 4, 1, 2, 4, 1]])
    B, T = tokens.shape
    want = np.zeros((3, B, 1, T, T), bool)
    for b, i, j in np.ndindex(B, T, T):
        want[0, b, 0, i, j] = j == i - 1
        want[1, b, 0, i, j] = j < i and tokens[b, i] == tokens[b, j]
        want[2, b, 0, i, j] = 0 < j <= i and tokens[b, i] == tokens[b, j - 1]
    for pattern, should in zip((previous, duplicate, induction), want, strict=True):
        assert (np.asarray(pattern(jnp.asarray(tokens))) == should).all()
    maps = np.tril(maps_of(B, 2, T))
    got = np.asarray(pattern_score(jnp.asarray(maps), induction(jnp.asarray(tokens))))
    for b, n in np.ndindex(B, 2):
        near(got[b, n], (maps[b, n] * want[2, b, 0]).sum() / maps[b, n].sum())


def test_an_induction_head_scores_one_where_tokens_repeat():
    tokens = jnp.asarray([[4, 1, 3, 2, 4, 1, 3, 2]])
    map_ = np.zeros((1, 1, 8, 8))
    for i in range(4, 8):
        map_[0, 0, i, i - 3] = 1
    near(pattern_score(jnp.asarray(map_), induction(tokens)), [[1.0]])


def test_distances_of_heads_are_sums_of_divergences():
    maps = maps_of(3, 5)
    maps[2] = np.eye(5)
    want = np.zeros((3, 3))
    for a, b, i in np.ndindex(3, 3, 5):
        p, r = (0.999 * x + 0.001 / 5 for x in (maps[a, i], maps[b, i]))
        m = (p + r) / 2
        want[a, b] += sum(p * np.log(p / m) + r * np.log(r / m)) / 2
    with jax.enable_x64(True):
        got = np.asarray(head_distances(jnp.asarray(maps)))
    near(got, want, 1e-10)
    near(got, got.T, 1e-10)
    assert (np.diag(got) == 0).all() and (got <= 5 * np.log(2)).all()


def test_words_sum_what_they_get_and_average_what_they_give():
    maps, words = maps_of(2, 6), np.asarray([0, 1, 1, 2, 2, 2])
    want = np.zeros((2, 3, 3))
    for n, a, b in np.ndindex(2, 3, 3):
        rows = np.flatnonzero(words == a)
        want[n, a, b] = sum(maps[n, i, j] for i in rows for j in np.flatnonzero(words == b))
        want[n, a, b] /= len(rows)
    near(word_maps(jnp.asarray(maps), words), want)
    near(want.sum(-1), np.ones((2, 3)))


def test_a_planted_head_finds_what_the_best_offset_finds():
    heads = np.asarray([1, 2, 3, 1, 3, 0])
    there = np.asarray([True, True, True, True, True, False])
    assert best_offset(heads, there) == (1, 0.6)
    maps = np.stack([np.eye(6)[heads], np.eye(6)[np.arange(1, 7) % 6]])
    got = head_accuracy(jnp.asarray(maps), jnp.asarray(heads), jnp.asarray(there))
    near(got, [1.0, 0.6])


def test_hops_of_a_grid():
    maps, grid = maps_of(2, 12), (3, 4)
    want = np.zeros((2, 4))
    for n, i, j in np.ndindex(2, 12, 12):
        far = max(abs(i // 4 - j // 4), abs(i % 4 - j % 4))
        want[n, far] += maps[n, i, j] / 12
    near(hops(jnp.asarray(maps), grid), want)
    near(want.sum(-1), np.ones(2))
    near(hops(jnp.eye(12), grid), [1.0, 0.0, 0.0, 0.0])


# ---------------------------------------------------------------------------------- guides


def emitted_oracle(cross, last, threshold):
    for j, row in enumerate(cross):
        kept = row[:-1] / np.linalg.norm(row[:-1])
        if kept[-last:].sum() >= threshold:
            return j
    return len(cross)


def test_emission_stops_at_the_first_token_that_looks_at_the_end():
    cross = np.random.default_rng(0).random((6, 9)) ** 4
    for threshold in (0.0, 0.1, 0.3, 0.6, 0.9, 1.5):
        got = int(emitted(jnp.asarray(cross), 2, threshold))
        assert got == emitted_oracle(cross, 2, threshold)
    changed = cross.copy()
    changed[:, -1] = 7
    assert emitted(jnp.asarray(changed), 2, 0.6) == emitted(jnp.asarray(cross), 2, 0.6)
    with pytest.raises(ValueError, match="last: 0; expected at least 1"):
        emitted(jnp.asarray(cross), 0)


def test_the_candidate_with_most_attention_to_the_pronoun():
    maps = maps_of(2, 3, 8)
    candidates = [[[1, 2]], [[4], [6]]]
    got = np.asarray(to_pronoun(jnp.asarray(maps), candidates, 7))
    a = np.zeros((2, 2, 3))
    for layer, n in np.ndindex(2, 3):
        a[0, layer, n] = (maps[layer, n, 1, 7] + maps[layer, n, 2, 7]) / 2
        a[1, layer, n] = maps[layer, n, 4, 7] + maps[layer, n, 6, 7]
    near(got, a)
    won = a.argmax(0)
    mass = np.asarray([sum(a[c][won == c]) for c in range(2)])
    near(attention_score(jnp.asarray(a)), mass / mass.sum())
    near(heads_won(jnp.asarray(a)), [(won == c).mean() for c in range(2)])
    near(attention_score(jnp.asarray(a[::-1].copy())), (mass / mass.sum())[::-1])


# ------------------------------------------------------------------------------- deception


def test_the_penalty_is_the_logarithm_of_what_is_left():
    q, k, _ = qkv(2, 6, 4, 8, K=2)
    forbidden = np.asarray([False, True, False, False, True, False])
    where = masks.array(jnp.broadcast_to(jnp.asarray(forbidden), (6, 6)))
    maps = np.asarray(attention_weights(q, k, mask=masks.causal), float)
    want = np.zeros((2, 4, 6))
    for b, n, i in np.ndindex(2, 4, 6):
        want[b, n, i] = -np.log(1 - sum(maps[b, n, i, j] for j in range(6) if forbidden[j]))
    near(mass_penalty(jnp.asarray(maps), jnp.asarray(forbidden)), want, 1e-4)
    got = forbidden_penalty(q, k, where, mask=masks.causal)
    near(np.swapaxes(got, 1, 2), want, 1e-4)
    assert (np.asarray(mass_penalty(jnp.asarray(maps), jnp.zeros(6, bool))) == 0).all()
    assert (np.asarray(got).max(-1) >= np.asarray(got).mean(-1)).all()


def test_its_gradient_lowers_what_is_forbidden():
    forbidden = jnp.asarray([False, True, False, True])
    logits = jnp.asarray([0.3, 1.0, -0.5, 0.2])
    grad = jax.grad(lambda x: mass_penalty(jax.nn.softmax(x), forbidden))(logits)
    assert (np.asarray(grad)[[1, 3]] > 0).all() and (np.asarray(grad)[[0, 2]] < 0).all()
    q, k, _ = qkv(1, 4, 1, 4)
    where = masks.array(jnp.broadcast_to(forbidden, (4, 4)))
    dense = lambda q: mass_penalty(attention_weights(q, k), forbidden).sum()
    streamed = lambda q: forbidden_penalty(q, k, where).sum()
    near(jax.grad(streamed)(q), jax.grad(dense)(q), 1e-4)
