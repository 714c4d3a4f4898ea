"""Probes against NumPy in float64, and planted sinks that must be found exactly."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, attention_weights, masks, normalizers, probes
from attnjax.probes import (
    attention_map,
    cumulative_spectrum,
    effective_rank,
    entropy,
    int8_round,
    kurtosis,
    largest_activation,
    numerical_rank,
    secondary_sinks,
    sink_rate,
    sink_scores,
    sparsity,
)
from tests import helpers
from tests.helpers import draw, draws, near


def causal_maps(*shape, seed=0):
    """Random causal maps whose rows sum to one."""
    T = shape[-1]
    raw = np.random.default_rng(seed).random((*shape, T)) + 0.01
    raw *= np.tril(np.ones((T, T)))
    return (raw / raw.sum(-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("normalizer", [normalizers.softmax, normalizers.softpick()])
def test_a_map_is_what_the_op_weighs_values_with(normalizer):
    q, k, v = helpers.qkv(2, 7, 4, 8, S=9, K=2, D=3)
    mask = masks.window(3, 2)
    op = functools.partial(attend, mask=mask, normalizer=normalizer)
    maps = np.asarray(attention_map(op, q, k))
    want = attention_weights(q, k, mask=mask, normalizer=normalizer)
    np.testing.assert_allclose(maps, want, rtol=1e-5, atol=1e-6)
    by_hand = np.einsum("bnts,bsnd->btnd", maps, np.repeat(np.asarray(v), 2, axis=2))
    np.testing.assert_allclose(op(q, k, v), by_hand, rtol=1e-5, atol=1e-6)


def test_sink_scores_average_over_the_queries_that_see_the_key():
    maps = causal_maps(2, 3, 6)
    want = np.zeros((2, 3, 6))
    for b, n, j in np.ndindex(2, 3, 6):
        want[b, n, j] = np.mean([float(maps[b, n, i, j]) for i in range(j, 6)])
    np.testing.assert_allclose(sink_scores(jnp.asarray(maps)), want, rtol=1e-5)


def test_sink_rate_counts_the_heads_that_sink():
    T, heads = 8, 5
    maps = np.tile(np.eye(T, dtype=np.float32), (2, 3, heads, 1, 1))  # layers, batch, heads
    for layer, head in [(0, 1), (1, 1), (1, 4)]:
        maps[layer, :, head] = 0
        maps[layer, :, head, :, 0] = 0.4
    assert float(sink_rate(jnp.asarray(maps))) == pytest.approx(3 / 10)
    assert float(sink_rate(jnp.asarray(maps), threshold=0.5)) == 0.0


def test_a_head_sinks_by_its_mean_over_the_batch():
    maps = np.zeros((2, 1, 4, 4), np.float32)
    maps[0, 0, :, 0] = 0.5  # one text sinks, the other does not: 0.25 on average
    assert float(sink_rate(jnp.asarray(maps))) == 0.0
    assert float(sink_rate(jnp.asarray(maps), threshold=0.2)) == 1.0


def planted(ranges, layers=6, T=32, primary=range(6)):
    """Maps (layers, 2, T, T): an even spread, and a share for each planted (key, layers)."""
    maps = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None] * 0.01
    maps = np.tile(maps, (layers, 2, 1, 1))
    for layer in primary:
        maps[layer, :, :, 0] += 0.5
    for position, where in ranges:
        for layer in where:
            maps[layer, :, position:, position] += 0.2
    return jnp.asarray(maps, jnp.float32)


def test_planted_secondary_sinks_are_found_exactly():
    found = secondary_sinks(planted([(5, range(2, 4)), (11, range(3, 6)), (20, [4])]))
    assert [s[:3] for s in found] == [(5, 2, 3), (11, 3, 5), (20, 4, 4)]
    assert all(0.2 < s.score < 0.215 for s in found)


def test_sinks_that_rise_with_the_first_key_or_come_back_are_not_secondary():
    early, split = (5, range(0, 6)), (9, [1, 4])
    assert secondary_sinks(planted([early, split])) == []
    late = planted([(5, range(2, 6))], primary=range(2, 6))
    assert secondary_sinks(late) == []
    assert [s[:3] for s in secondary_sinks(planted([(5, range(3, 6))], primary=range(2, 6)))] == [
        (5, 3, 5)
    ]


def test_a_stronger_sink_has_a_higher_score_and_a_removed_one_is_gone():
    maps = planted([(5, range(2, 4))])
    stronger = maps.at[2, :, 5:, 5].add(0.1)
    (weak,), (strong,) = secondary_sinks(maps), secondary_sinks(stronger)
    assert strong.score == pytest.approx(weak.score + 0.1, abs=1e-5)
    assert secondary_sinks(maps.at[2:4, :, :, 5].set(0)) == []


def test_entropy_and_sparsity():
    maps = causal_maps(2, 5)
    maps[0, 3] = 0
    maps[1, 4, 2] = 0
    want = np.zeros((2, 5))
    for b, i in np.ndindex(2, 5):
        p = maps[b, i].astype(float)
        p = p[p > 0] / max(p.sum(), 1e-30)
        want[b, i] = -(p * np.log(p)).sum()
    np.testing.assert_allclose(entropy(jnp.asarray(maps)), want, rtol=1e-5, atol=1e-6)
    allowed = jnp.tril(jnp.ones((5, 5), bool))
    assert float(sparsity(jnp.asarray(maps), allowed)) == pytest.approx((4 + 1) / 30)
    assert float(sparsity(jnp.asarray(maps))) == pytest.approx((20 + 5) / 50)


def test_kurtosis_and_largest_activation():
    x = np.random.default_rng(0).normal(size=(40, 50)) * 3 + 1
    x[3, 4] = -70.0
    d = x - x.mean()
    want = (d**4).mean() / (d**2).mean() ** 2
    got = kurtosis(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert float(largest_activation(jnp.asarray(x, jnp.float32))) == 70.0


def test_int8_rounding_has_255_levels_and_keeps_the_ends():
    x = np.linspace(-2.0, 1.3, 4001).astype(np.float32)
    got = np.asarray(int8_round(jnp.asarray(x)))
    step = 2.0 / 127
    np.testing.assert_allclose(got, np.round(x / step) * step, atol=1e-6)
    assert len(np.unique(np.round(got / step))) <= 255 and got.min() == -2.0
    assert np.abs(got - x).max() <= step / 2 * 1.001
    np.testing.assert_array_equal(int8_round(jnp.zeros(3)), np.zeros(3))


# ------------------------------------------------------------------ concentration and mixing


def test_the_log_variance_of_softmax_is_that_of_its_scores():
    draw = np.random.default_rng(0)
    scores = 1.7 * draw.normal(size=(3, 400, 400))
    maps = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    found = np.asarray(probes.log_variance(jnp.asarray(maps, jnp.float32)))
    np.testing.assert_allclose(found, np.log(maps).var((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(found, 1.7**2, rtol=0.03)
    masked = jnp.asarray([[1.0, 0.0], [0.2, 0.8]])
    logs = np.log([1.0, 0.2, 0.8])
    np.testing.assert_allclose(probes.log_variance(masked), logs.var(), rtol=1e-5)
    assert probes.log_variance(jnp.full((4, 4), 0.25)) < 1e-10


def test_the_spectral_gap_tells_mixing_from_none():
    assert np.isclose(probes.spectral_gap(jnp.full((5, 5), 0.2)), 1.0, atol=1e-5)
    assert np.isclose(probes.spectral_gap(jnp.eye(5)), 0.0, atol=1e-5)
    slow = jnp.asarray([[0.9, 0.1], [0.3, 0.7]])  # eigenvalues 1 and 0.6
    np.testing.assert_allclose(probes.spectral_gap(jnp.stack([slow, slow])), 0.4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"spectral_gap: maps have shape \(2, 3\), expected T = S"):
        probes.spectral_gap(jnp.zeros((2, 3)))


def test_ranks_of_matrices_that_are_known():
    u, v = draws((6, 2), (2, 5))
    near(numerical_rank(jnp.stack([u @ v, jnp.zeros((6, 5))])), [2, 0])
    assert numerical_rank(jnp.diag(jnp.asarray([1.0, 1e-2, 1e-4]))) == 2
    assert numerical_rank(jnp.diag(jnp.asarray([1.0, 1e-2, 1e-4])), tolerance=1e-1) == 1
    near(effective_rank(jnp.eye(4)), 4.0)
    near(effective_rank(jnp.outer(u[:, 0], v[0])), 1.0, 1e-3)
    near(effective_rank(jnp.diag(jnp.asarray([3.0, 1.0]))), 4 * 3**-0.75)
    near(effective_rank(jnp.zeros((2, 2))), 1.0)


B, T, N, K, H = 2, 12, 4, 2, 8


def qkv():
    return draw(B, T, N, H), draw(B, T, K, H, seed=1), draw(B, T, K, H, seed=2)


def test_the_cumulative_spectrum_tells_low_rank():
    turn, _ = np.linalg.qr(np.asarray(draw(3, 3)))
    near(cumulative_spectrum(jnp.asarray(turn * [6.0, 3.0, 1.0])), [0.6, 0.9, 1.0])
    near(cumulative_spectrum(jnp.zeros((2, 4, 3))), np.zeros((2, 3)))
    q, k, _ = qkv()
    sharp, soft = (cumulative_spectrum(attention_weights(x, k)) for x in (5 * q, q / 5))
    assert (soft[..., 0] > sharp[..., 0]).all() and (soft[..., 0] > 0.6).all()
