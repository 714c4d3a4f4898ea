"""Statistics over tiles against those of the matrix of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import (
    Blockwise,
    attention_scores,
    attention_weights,
    masks,
    measure,
    mods,
    normalizers,
)
from attnjax.core.pairwise.measure import STATISTICS
from attnjax.core.pairwise.triton import Triton
from attnjax.parallel import On, Ring
from tests.helpers import draws, sample

n = normalizers
B, T, S, N, K, H = 2, 7, 9, 4, 2, 5
BIAS = np.random.default_rng(1).normal(size=(1, N, T, S))
TERMS = {"mask": masks.window(4, 3), "mods": (mods.pair_bias(BIAS),)}
NORMALIZERS = {
    "softmax": n.softmax,
    "softmax_sink": n.softmax_sink(np.array([0.1, 3.0, -2.0, 1.0])),
    "softmax_one": n.softmax_one,
    "sigmoid": n.sigmoid(-1.0),
    "relu": n.relu(2),
    "softpick": n.softpick(),
    "softplus": n.softplus(),
    "softplus sharpened": n.softplus(3, 0.8),
    "clipped": n.clipped_softmax(-0.1, 1.1),
    "entmax": n.entmax(1.5),
    "sparsemax": n.sparsemax,
}


def qk(dtype=jnp.float64):
    q, k = draws((B, T, N, H), (B, S, K, H))
    return jnp.asarray(q, dtype), jnp.asarray(k, dtype)


def by_matrix(q, k, normalizer, first=1, top=3, **terms):
    """The same from the whole matrices, in NumPy."""
    w = np.asarray(attention_weights(q, k, normalizer=normalizer, **terms))
    s = np.asarray(attention_scores(q, k, **terms))
    ok = s > -np.inf
    i, j = np.arange(w.shape[2])[:, None], np.arange(w.shape[3])
    at = np.sort(np.where(ok, s, -np.inf), axis=-1)[..., ::-1][..., min(top, s.shape[3]) - 1, None]
    mass = w.sum(-1)
    safe = np.where(mass == 0, 1, mass)
    return {
        "mass": mass,
        "entropy": -(w * np.log(np.where(w > 0, w, 1))).sum(-1),
        "largest_weight": w.max(-1),
        "largest_score": s.max(-1),
        "top_mass": np.where(ok & (s >= at), w, 0).sum(-1),
        "first_mass": w[..., :first].sum(-1),
        "distance": (w * abs(i - j)).sum(-1) / safe,
        "zeros": ((w == 0) & ok).sum(-1) / np.maximum(ok.sum(-1), 1),
        "key_mass": w.sum(-2),
    }


def names_of(normalizer):
    return tuple(name for name in STATISTICS if name != "top_mass" or not normalizer.stages)


@pytest.mark.parametrize("name", sample(["softmax_sink"], NORMALIZERS, pytest.mark.slow))
def test_every_statistic_is_that_of_the_matrix(name):
    normalizer = NORMALIZERS[name]
    names = names_of(normalizer)
    with jax.enable_x64():
        q, k = qk()
        run = lambda q, k: measure(
            q, k, of=names, first=2, top=3, normalizer=normalizer, impl=Blockwise(3, 4), **TERMS
        )
        got = jax.jit(run)(q, k)
        want = by_matrix(q, k, normalizer, first=2, top=3, **TERMS)
    assert set(got) == set(names)
    for each in names:
        np.testing.assert_allclose(got[each], want[each], atol=1e-9, err_msg=each)


def test_rows_without_keys_have_nothing_and_ties_share():
    with jax.enable_x64():
        q, k = qk()
        ok = np.ones((T, S), bool)
        ok[2] = False
        got = measure(q, 0 * k, of=tuple(STATISTICS), top=2, mask=masks.array(ok))
        got = {name: np.asarray(x) for name, x in got.items()}
    assert got["largest_score"][0, 0, 2] == -np.inf
    for name in set(STATISTICS) - {"largest_score", "key_mass"}:
        assert not np.any(got[name][:, :, 2]), name
    np.testing.assert_allclose(got["top_mass"][:, :, 3], 1.0)  # all nine tie
    np.testing.assert_allclose(got["entropy"][:, :, 3], np.log(S))


@pytest.mark.parametrize(
    "name", sample(["softmax_sink"], ["softmax", "entmax", "sigmoid"], pytest.mark.slow)
)
@pytest.mark.parametrize("of", sample(["entropy"], ["first_mass", "distance"], pytest.mark.slow))
def test_statistics_have_the_gradients_of_the_matrix(name, of):
    normalizer = NORMALIZERS[name]

    def dense(q, k):
        w = attention_weights(q, k, normalizer=normalizer, **TERMS)
        distance = abs(np.arange(T)[:, None] - np.arange(S))
        if of == "entropy":
            return jnp.sum(jnp.sin(-(w * jnp.log(jnp.where(w > 0, w, 1.0))).sum(-1)))
        if of == "distance":
            return jnp.sum(jnp.sin((w * distance).sum(-1) / w.sum(-1)))
        return jnp.sum(jnp.sin(w[..., 0]))

    def tiles(q, k):
        options = {"normalizer": normalizer, "impl": Blockwise(3, 4)} | TERMS
        return jnp.sum(jnp.sin(measure(q, k, of=of, **options)[of]))

    with jax.enable_x64():
        for got, want in zip(
            jax.grad(tiles, (0, 1))(*qk()), jax.grad(dense, (0, 1))(*qk()), strict=True
        ):
            np.testing.assert_allclose(got, want, atol=1e-9)


@pytest.mark.slow
def test_around_a_ring(fresh_programs):
    names = tuple(STATISTICS)
    mesh = jax.make_mesh((2,), ("sp",), devices=jax.devices()[:2])
    with jax.enable_x64():
        q, k = (jnp.asarray(x) for x in draws((B, 8, N, H), (B, 8, K, H)))
        impl = On(mesh, Ring("sp", "zigzag"))
        run = lambda q, k: measure(q, k, of=names, top=3, mask=masks.causal, impl=impl)
        got = jax.jit(run)(q, k)
        want = by_matrix(q, k, n.softmax, mask=masks.causal)
    for name in names:
        np.testing.assert_allclose(got[name], want[name], atol=1e-9, err_msg=name)


@pytest.mark.slow
def test_by_kernels():
    pytest.importorskip("triton")
    q, k = qk(jnp.float32)
    impl = Triton(16, 16, interpret=True)
    names = ("entropy", "largest_weight", "key_mass")
    got = measure(q, k, of=names, mask=masks.window(4, 3), impl=impl)
    want = by_matrix(q, k, n.softmax, mask=masks.window(4, 3))
    for name in names:
        np.testing.assert_allclose(got[name], want[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_no_matrix_of_weights_is_ever_held():
    q = jax.ShapeDtypeStruct((1, 4096, 2, 8), jnp.float32)
    run = lambda q: measure(q, q, of=tuple(STATISTICS), mask=masks.causal, impl="blockwise")
    held = jax.jit(run).lower(q).compile().memory_analysis().temp_size_in_bytes
    assert held < 2 * 4096 * 4096 * 4 / 8


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"of": "entropies"}, "of has 'entropies', expected names among mass, entropy"),
        ({"first": 0}, "first is 0, top is 8, expected at least 1"),
        ({"of": "top_mass", "normalizer": n.entmax()}, "top_mass under entmax.*one-pass"),
    ],
)
def test_what_cannot_be_measured_is_told(given, told):
    with pytest.raises(ValueError, match=told):
        measure(*qk(jnp.float32), **given)


def test_positions_of_decoding_are_those_of_the_text():
    q, k = qk(jnp.float32)
    at = np.arange(T) + 30
    got = measure(
        q, k, of=("distance", "first_mass"), first=23, q_positions=at, k_positions=21 + np.arange(S)
    )
    w = np.asarray(attention_weights(q, k))
    far = abs(at[:, None] - 21 - np.arange(S))
    np.testing.assert_allclose(got["distance"], (w * far).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(got["first_mass"], w[..., :2].sum(-1), rtol=1e-5)
