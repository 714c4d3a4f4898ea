"""Normalizers against NumPy float64 written from their papers, and the law of the merge."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnjax import Blockwise, attend, masks, normalizers
from attnjax.core.normalizers import State, lowest, merge
from attnjax.core.normalizers import weights as dense_weights
from attnjax.core.pairwise.operands import Shape
from tests.helpers import qkv


def np_softmax(s):
    e = np.exp(s - s.max())
    return e / e.sum()


def np_sink(s, logit=0.0):
    return np.exp(s) / (np.exp(logit) + np.exp(s).sum())


def np_softpick(s, eps=1e-6):
    return np.maximum(np.exp(s) - 1, 0) / (np.abs(np.exp(s) - 1).sum() + eps)


def np_signed(s):
    return np.sign(s) * np.exp(np.abs(s)) / np.exp(np.abs(s)).sum()


def np_taylor(s, order=2):
    p = sum(s**k / np.prod(np.arange(1, k + 1)) for k in range(order + 1))
    return p / p.sum()


def np_softplus(s, power=1, offset=0.0):
    a = np.logaddexp(0, s)
    a = np.maximum(len(s) * a / a.sum() - offset, 0) ** power
    return a / a.sum() if a.sum() > 0 else np.zeros_like(a)


def np_clipped(s, low, high):
    return np.clip((high - low) * np_softmax(s) + low, 0, 1)


def np_entmax(s, alpha):
    """tau by bisection, to the last bit: another method than the code's."""
    z = (alpha - 1) * s
    weigh = lambda tau: np.maximum(z - tau, 0) ** (1 / (alpha - 1))
    low, high = z.max() - 1, z.max()
    for _ in range(200):
        mid = (low + high) / 2
        low, high = (mid, high) if weigh(mid).sum() >= 1 else (low, mid)
    return weigh(low)


def np_laplace(s):
    """The cumulative normal distribution of the paper's mean and deviation."""
    mean, deviation = 0.5**0.5, (0.25 / np.pi) ** 0.5
    return np.array([1 + math.erf((x - mean) / (deviation * 2**0.5)) for x in s]) / 2


def np_hard(s):
    return (s == s.max()) / (s == s.max()).sum()


n = normalizers
CASES = {
    "softmax": (n.softmax, np_softmax, "one-pass"),
    "softmax_sink": (n.softmax_sink(np.full(1, 0.7)), lambda s: np_sink(s, 0.7), "one-pass"),
    "softmax_one": (n.softmax_one, np_sink, "one-pass"),
    "sigmoid": (n.sigmoid(-1.5), lambda s: 1 / (1 + np.exp(1.5 - s)), "one-pass"),
    "relu": (n.relu(), lambda s: np.maximum(s, 0), "one-pass"),
    "relu squared": (n.relu(2), lambda s: np.maximum(s, 0) ** 2, "one-pass"),
    "identity": (n.identity, lambda s: s, "one-pass"),
    "exp": (n.exp, np.exp, "one-pass"),
    "laplace": (n.laplace, np_laplace, "one-pass"),
    "softpick": (n.softpick(), np_softpick, "one-pass"),
    "signed": (n.signed, np_signed, "one-pass"),
    "taylor 2": (n.taylor(), np_taylor, "one-pass"),
    "taylor 4": (n.taylor(4), lambda s: np_taylor(s, 4), "one-pass"),
    "softplus": (n.softplus(), np_softplus, "one-pass"),
    "softplus sharpened": (n.softplus(3, 0.8), lambda s: np_softplus(s, 3, 0.8), "two-pass"),
    "clipped_softmax": (
        n.clipped_softmax(-0.1, 1.1),
        lambda s: np_clipped(s, -0.1, 1.1),
        "two-pass",
    ),
    "entmax 1.5": (n.entmax(1.5), lambda s: np_entmax(s, 1.5), "17-pass"),
    "entmax 1.2": (n.entmax(1.2), lambda s: np_entmax(s, 1.2), "17-pass"),
    "entmax of heads": (n.entmax(np.full(1, 1.7)), lambda s: np_entmax(s, 1.7), "17-pass"),
    "sparsemax": (n.sparsemax, lambda s: np_entmax(s, 2.0), "17-pass"),
    "hard": (n.hard, np_hard, "one-pass"),
}
every = pytest.mark.parametrize("name", CASES)


def attend_to_scores(normalizer, s, ok, impl):
    """The weights of a (T, S) matrix of scores, read off `attend` with the identity for values."""
    one = jnp.eye(s.shape[1], dtype=s.dtype)[None, :, None]
    run = lambda q, ok: attend(
        q, one, one, mask=masks.array(ok), normalizer=normalizer, scale=1.0, impl=impl
    )
    return np.asarray(jax.jit(run)(s[None, :, None], ok)[0, :, 0])


@every
@pytest.mark.parametrize("impl", ["dense", Blockwise(3, 4)], ids=["dense", "blockwise"])
def test_weights_are_the_papers(name, impl):
    normalizer, truth, passes = CASES[name]
    assert normalizer.passes == passes
    with jax.enable_x64():
        rng = np.random.default_rng(0)
        s = rng.normal(size=(7, 11)) * np.geomspace(0.1, 30, 7)[:, None]
        ok = rng.random((7, 11)) < 0.7
        ok[2], ok[4] = False, np.arange(11) == 3
        got = attend_to_scores(normalizer, jnp.asarray(s), ok, impl)
    for i in range(7):
        want = np.zeros(11)
        if ok[i].any():
            want[ok[i]] = truth(s[i][ok[i]])
        np.testing.assert_allclose(got[i], want, atol=1e-10)


@every
def test_large_scores_neither_overflow_nor_lose_precision(name):
    """float32 scores of +-1e4 (powers stay smaller): finite, and near the float64 weights."""
    normalizer, truth, _ = CASES[name]
    size = 30.0 if "taylor" in name or "relu" in name or name == "exp" else 1e4
    s = np.float32([[size, -size, size - 1, 0.5], [-size, -size + 1, -2 * size, -size]])
    with np.errstate(over="ignore", invalid="ignore"):
        want = np.array([truth(np.float64(row)) for row in s])
    for impl in ("dense", Blockwise(2, 2)):
        got = attend_to_scores(normalizer, jnp.asarray(s), np.ones(s.shape, bool), impl)
        assert np.isfinite(got).all()
        known = np.isfinite(want)
        scale = np.abs(want[known]).max(initial=1.0)
        np.testing.assert_allclose(got[known], want[known], atol=2e-3 * scale)


@every
def test_gradients_are_those_of_finite_differences(name):
    """At scores away from kinks; hard attention has no gradient for scores."""
    normalizer, truth, _ = CASES[name]
    with jax.enable_x64():
        rng = np.random.default_rng(1)
        s = rng.normal(size=(1, 6)) * 1.7
        u = rng.normal(size=6)
        weigh = lambda s: dense_weights(normalizer_laid(normalizer), s[None, None], None)
        grad = jax.grad(lambda s: jnp.sum(weigh(s)[0, 0, 0] * u))(jnp.asarray(s))[0]
    e = 1e-6
    for j in range(6):
        step = e * (np.arange(6) == j)
        slope = (truth(s[0] + step) - truth(s[0] - step)) @ u / (2 * e)
        np.testing.assert_allclose(grad[j], slope, atol=1e-6)


def normalizer_laid(normalizer):

    return normalizer.laid_out(Shape(1, 1, 6, 1, 1, 1, 1), jnp.float64)


def test_gradients_reach_the_parameters():
    """Sink logits, a bias per head: against finite differences, blockwise."""
    with jax.enable_x64():
        q, k, v = qkv(2, 5, 3, 4)
        for make, at in (
            (n.softmax_sink, [0.3, -1.0, 2.0]),
            (n.sigmoid, [0.1, -0.5, 1.0]),
            (lambda x: n.clipped_softmax(x[0], x[1]), [-0.1, 1.2]),
            (lambda x: n.softplus(2, x[0]), [0.6]),
        ):
            at = jnp.asarray(at)
            loss = jax.jit(
                lambda x, make=make: jnp.sum(
                    jnp.sin(attend(q, k, v, normalizer=make(x), impl=Blockwise(2, 3)))
                )
            )
            grad = jax.jit(jax.grad(loss))(at)
            for i in range(len(at)):
                step = 1e-6 * (jnp.arange(len(at)) == i)
                slope = (loss(at + step) - loss(at - step)) / 2e-6
                np.testing.assert_allclose(grad[i], slope, atol=1e-7)


finite = st.floats(-50, 50)
scores = st.lists(finite, min_size=1, max_size=8)


def state_of(normalizer, s):
    """The one-pass state of some keys, straight from the definition (values: the terms f)."""
    s = jnp.asarray(s, jnp.float64)[None, None, None]
    peak = normalizer.peak
    m = jnp.full((1, 1, 1, 1), lowest(s.dtype)) if peak is None else peak(s).max(-1, keepdims=True)
    at = jnp.where(m <= lowest(s.dtype), 0.0, m)
    f = normalizer.numerator(s, at, (), normalizer.params)
    g = normalizer.denominator(s, at, (), normalizer.params) if normalizer.denominator else f
    return State(m, (g.sum(-1, keepdims=True),), f.sum(-1, keepdims=True))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    a=scores, b=scores, c=scores, name=st.sampled_from(["softmax", "softpick", "signed", "hard"])
)
def test_merge_is_the_state_of_the_union_in_any_grouping(a, b, c, name):
    with jax.enable_x64():
        normalizer = CASES[name][0]
        x, y, z = (state_of(normalizer, s) for s in (a, b, c))
        whole = state_of(normalizer, a + b + c)
        r = normalizer.rescale
        for got in (
            merge(merge(x, y, r), z, r),
            merge(x, merge(y, z, r), r),
            merge(merge(z, x, r), y, r),
        ):
            jax.tree.map(
                lambda p, w: np.testing.assert_allclose(p, w, rtol=1e-9, atol=1e-9), got, whole
            )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: n.relu(0), "relu: power is 0, expected an integer of at least 1"),
        (lambda: n.taylor(3), "taylor: order is 3, expected an even integer of at least 2"),
        (lambda: n.entmax(2.5), "entmax: alpha is 2.5, expected a number with 1 < alpha <= 2"),
        (lambda: n.entmax(1.0), "entmax: alpha is 1.0, expected a number with 1 < alpha <= 2"),
        (lambda: n.softplus(0), "softplus: power is 0, expected an integer of at least 1"),
        (lambda: n.clipped_softmax(0.1), "clipped_softmax: low is 0.1, expected at most 0"),
        (lambda: n.clipped_softmax(-0.1, 0.9), "clipped_softmax: high is 0.9, expected at least 1"),
    ],
)
def test_bad_parameters_say_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make()


def test_laplace_follows_the_squared_relu_at_the_fitted_point():
    at = jnp.sqrt(0.5)
    value = lambda s: normalizers.laplace.numerator(s, s, (), ())
    np.testing.assert_allclose(value(at), 0.5, rtol=1e-5)
    np.testing.assert_allclose(
        jax.grad(value)(at), jax.grad(lambda s: jax.nn.relu(s) ** 2)(at), rtol=1e-5
    )
    inside = value(jnp.linspace(-1.0, 1.7, 50))
    assert (inside > 0).all() and (inside < 1).all() and (jnp.diff(inside) > 0).all()


@pytest.mark.parametrize("name", ["softplus sharpened", "clipped_softmax", "entmax 1.5"])
def test_second_derivatives_are_those_of_the_formula(name):
    """Those of an iteration do not end with its last step."""
    normalizer, formula, _ = CASES[name]
    s, step, weigh = np.random.default_rng(11).standard_normal((3, 7))
    e = 1e-3
    ahead, here, behind = (weigh @ formula(s + x * step) for x in (e, 0.0, -e))
    with jax.enable_x64():
        loss = lambda s: dense_weights(normalizer, s[None, None, None], None)[0, 0, 0] @ weigh
        found = jax.jit(lambda s: jax.jvp(jax.grad(loss), (s,), (step,))[1] @ step)(s)
    np.testing.assert_allclose(found, (ahead - 2 * here + behind) / e**2, atol=1e-4)


@pytest.mark.parametrize("impl", ["dense", Blockwise(3, 4)], ids=["dense", "blockwise"])
def test_a_learned_alpha_of_each_head_has_its_gradient(impl):
    with jax.enable_x64():
        rng = np.random.default_rng(0)
        q, k, v, weigh = rng.normal(size=(4, 1, 6, 3, 4))
        alpha = np.array([1.1, 1.5, 1.9])

        def loss(alpha, q):
            return jnp.sum(weigh * attend(q, k, v, normalizer=n.entmax(alpha), impl=impl))

        got = jax.grad(loss)(jnp.asarray(alpha), jnp.asarray(q))
        for i in range(3):
            step = 1e-5 * np.eye(3)[i]
            slope = (loss(alpha + step, q) - loss(alpha - step, q)) / 2e-5
            np.testing.assert_allclose(got[i], slope, rtol=1e-5)
        mixed = lambda a: jax.grad(loss, argnums=1)(a, jnp.asarray(q))
        got = jax.jvp(mixed, (jnp.asarray(alpha),), (jnp.ones(3),))[1]
        want = (mixed(alpha + 1e-5) - mixed(alpha - 1e-5)) / 2e-5
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)
