"""Weights moved between keys against loops in float64, and what must not move."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.probes.contrast import contrast, contrast_of_steps, divergence, vision_heads
from attnjax.probes.redistribute import (
    calibrated,
    image_centered,
    later_sinks,
    massive_tokens,
    redistribute,
    to_image,
)
from tests.helpers import draw, draws, near


def maps_of(*shape, seed=0, sink=None, causal=True):
    raw = np.random.default_rng(seed).random((*shape, shape[-1])) + 0.01
    if sink is not None:
        raw[..., sink] += 6
    if causal:
        raw = raw * np.tril(np.ones(raw.shape[-2:]))
    return raw / raw.sum(-1, keepdims=True)


def calibrated_oracle(maps, threshold, share):
    """The procedure of the paper, head by head."""
    out = maps.copy()
    T = maps.shape[-1]
    for n in np.ndindex(maps.shape[:-2]):
        sinks = [j for j in range(1, T) if maps[n][:, j].sum() / (T - j) > threshold]
        others = [j for j in range(T) if j not in sinks]
        for i in range(T):
            freed = (1 - share) * sum(maps[n][i, j] for j in sinks)
            rest = sum(maps[n][i, j] for j in others)
            for j in range(T):
                a = maps[n][i, j]
                out[n][i, j] = share * a if j in sinks else a + freed * a / rest
    return out


def test_calibrated_heads_are_those_of_loops():
    with jax.enable_x64(True):
        maps = maps_of(2, 3, 8, sink=3)
        got = calibrated(jnp.asarray(maps), 0.3, 0.4)
        near(got, calibrated_oracle(maps, 0.3, 0.4), 1e-12)
        assert not np.allclose(got, maps)
        near(np.asarray(got).sum(-1), np.ones((2, 3, 8)), 1e-12)
        near(calibrated(jnp.asarray(maps), 0.3, 1.0), maps, 1e-12)
        near(calibrated(jnp.asarray(maps), 2.0), maps, 1e-12)
        near(got[..., 0, :], maps[..., 0, :], 1e-12)
    first = maps_of(1, 8, sink=0)
    assert not later_sinks(jnp.asarray(first), 0.3).any()


def test_a_row_without_takers_stays():
    maps = jnp.asarray([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    giving, taking = jnp.asarray([True, True, False]), jnp.asarray([False, False, True])
    near(redistribute(maps, giving, taking, 0.5), [[0.5, 0.5, 0.0], [0.1, 0.15, 0.75]])


def to_image_oracle(maps, image, sinks, queries, share):
    out = maps.copy()
    N, T, S = maps.shape
    for n, i in np.ndindex(N, T):
        row = maps[n, i]
        seen = sum(row[j] for j in range(S) if image[j])
        lost = sum(row[j] for j in range(S) if image[j] and sinks[j])
        if not (queries[i] and any(image & sinks) and seen >= 0.2 and lost / seen <= 0.5):
            continue
        budget = (1 - share) * sum(row[j] for j in range(S) if sinks[j])
        takers = [j for j in range(S) if image[j] and not sinks[j]]
        total = sum(row[j] for j in takers)
        for j in range(S):
            if sinks[j]:
                out[n, i, j] = share * row[j]
            elif j in takers:
                out[n, i, j] = row[j] + budget * row[j] / total
    return out


def test_an_image_takes_what_sinks_lose_in_the_heads_that_look_at_it():
    maps = np.concatenate([maps_of(3, 10), maps_of(2, 10, sink=4, seed=1)])
    image = np.isin(np.arange(10), [2, 3, 4, 5, 6])
    sinks = np.isin(np.arange(10), [0, 4])
    queries = np.arange(10) > 6
    args = [jnp.asarray(x) for x in (image, sinks)]
    with jax.enable_x64(True):
        there = np.asarray(image_centered(jnp.asarray(maps), *args))
        assert there[:3, 8:].all() and not there[3:, 8:].any()
        got = to_image(jnp.asarray(maps), *args, jnp.asarray(queries), 0.6)
        near(got, to_image_oracle(maps, image, sinks, queries, 0.6), 1e-12)
        assert not np.allclose(got, maps)
        near(to_image(jnp.asarray(maps), *args, jnp.asarray(queries), 1.0), maps, 1e-12)
        none = jnp.asarray(np.arange(10) == 0)
        near(to_image(jnp.asarray(maps), args[0], none, jnp.asarray(queries)), maps, 1e-12)
    near(np.asarray(got).sum(-1), np.ones((5, 10)))


def test_massive_tokens_are_found_by_their_channels():
    x = np.array(draw(2, 6, 512))
    x[0, 0, 5] = 3000.0
    x[1, 2, 7] = -3000.0
    x[1, 3, 8] = 3000.0  # no channel of a sink
    found = np.asarray(massive_tokens(jnp.asarray(x), (5, 7)))
    assert list(zip(*np.nonzero(found), strict=True)) == [(0, 0), (1, 2)]


def test_contrast_solves_its_least_squares_and_steps_weigh_by_their_number():
    a, g = np.random.default_rng(0).random((2, 4, 3, 7))
    c = 0.1
    s = np.asarray(contrast(jnp.asarray(a), jnp.asarray(g), c), float)
    loss = lambda s: np.sum((s * g - a) ** 2 + c * s**2 * g)
    assert all(loss(s) <= loss(s + d) for d in (1e-2, -1e-2))
    near(contrast(jnp.asarray(a), jnp.asarray(a)), np.ones_like(a))
    near(contrast(jnp.asarray(3 * a), jnp.asarray(3 * g), 0.0), a / g)
    want = np.zeros(7)
    for t in range(3):
        for layer in range(3):
            want += (t + 1) * a[t, layer] / (g[t, layer] + 1e-8)
    near(contrast_of_steps(jnp.asarray(a[:3]), jnp.asarray(g)), want, 1e-4)


def test_vision_heads_are_above_the_median_but_no_surge():
    seeing, blind = draws((2, 5, 8, 4), (2, 5, 8, 4))
    apart = np.asarray(divergence(seeing, blind))
    for b, t, n in np.ndindex(2, 5, 8):
        near(apart[b, t, n], np.linalg.norm(np.asarray(seeing - blind)[b, t, n].astype(float)))
    chosen = np.asarray(vision_heads(jnp.asarray(apart)))
    for b, t in np.ndindex(2, 5):
        d = apart[b, t].astype(float)
        want = (d > np.median(d)) & ~(d > d.mean() + np.sqrt(np.mean((d - d.mean()) ** 2)))
        assert (chosen[b, t] == want).all() and want.sum() <= (~(d > d.mean() + d.std())).sum() / 2
    assert (np.asarray(divergence(seeing, seeing)) == 0).all()
