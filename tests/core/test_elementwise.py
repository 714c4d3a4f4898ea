"""What a mod may be: an elementwise function of a score; and the makers' own checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, linear_attend, masks, mods, normalizers
from attnjax.core.pairwise.blockwise import Blockwise
from tests.helpers import close, qkv

q, k, v = qkv(2, 6, 4, 4)
TABLE = jnp.arange(5.0)

MIXING = {
    "max": lambda s: s - s.max(-1, keepdims=True),
    "mean of all": lambda s: s - s.mean(),
    "softmax": jax.nn.softmax,
    "cumsum": lambda s: jnp.cumsum(s, -1),
    "sort": jnp.sort,
    "part": lambda s: s[..., :1],
    "roll": lambda s: jnp.roll(s, 1, -1),
    "reversed heads": lambda s: s[:, ::-1],
    "product": lambda s: s @ s.swapaxes(-1, -2),
    "argmax": lambda s: s + jnp.argmax(s, -1)[..., None],
    "any": lambda s: jnp.where(jnp.isnan(s).any(), 0.0, s),
    "place in the tile": lambda s: s + jnp.arange(s.shape[-1]),
    "in a branch": lambda s: jax.lax.cond(
        True, lambda s: s - s.sum(-1, keepdims=True), jnp.tanh, s
    ),
    "under jit": jax.jit(lambda s: s / s.sum(-2, keepdims=True)),
}
ELEMENTWISE = {
    "lookup": (lambda s: s + TABLE[jnp.clip(s.astype(int), 0, 4)], None),
    "axes of its own": (lambda s: jnp.stack([s, -s]).max(0), np.abs),
    "polynomial": (lambda s: jnp.polyval(jnp.arange(3.0), s), lambda s: s + 2),
    "a number": (lambda s: 1.0, lambda s: 0 * s + 1),
    "one of jit": (jax.jit(jnp.tanh), np.tanh),
    "custom derivative": (jax.nn.relu, lambda s: np.maximum(s, 0)),
    "rounded": (lambda s: jax.lax.reduce_precision(s, 8, 23), lambda s: s),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_mod_that_looks_at_other_pairs_is_refused(name):
    for impl in ("dense", "blockwise"):
        with pytest.raises(ValueError, match="is not elementwise"):
            attend(q, k, v, mods=(mods.mod(MIXING[name]),), impl=impl)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_elementwise_mod_runs_alike_everywhere(name):
    fn, truth = ELEMENTWISE[name]
    run = lambda impl: attend(q, k, v, mods=(mods.mod(fn),), impl=impl)
    close(run(Blockwise(4, 4)), run("dense"), 1e-5)
    if truth is not None:
        s = truth(np.einsum("BTNH,BSNH->BNTS", q, k) / 2)
        w = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
        close(run("dense"), np.einsum("BNTS,BSNH->BTNH", w, v), 1e-5)


FLOAT8 = q.astype(jnp.float8_e4m3fn)
WRONG = {
    "dtype": (lambda: attend(q, k, v, mods=(mods.mod(lambda s: s > 0),)), "gives dtype bool"),
    "two": (lambda: attend(q, k, v, mods=(mods.mod(lambda s: (s, s)),)), "gives 2 arrays"),
    "shape": (lambda: attend(q, k, v, mods=(mods.mod(lambda s: s[None]),)), "expected the shape"),
    "arguments": (
        lambda: attend(q, k, v, mods=(mods.mod(lambda s: s, head=[1.0, 2.0]),)),
        "does not take 3 arguments",
    ),
    "a function": (lambda: attend(q, k, v, mods=lambda s: s), "mods is function, expected a tuple"),
    "a mask": (lambda: attend(q, k, v, mods=masks.causal), "mods is Window, expected a tuple"),
    "slopes of none": (lambda: mods.alibi_slopes(0), "N is 0, expected an integer of at least 1"),
    "slopes as text": (lambda: mods.alibi("1"), "alibi: slopes is '1', expected an array"),
    "one bucket": (lambda: mods.t5_bias(np.ones((4, 1))), "buckets is 1, expected four at least"),
    "two buckets": (lambda: mods.t5_bias(np.ones((4, 2))), "buckets is 2, expected four at least"),
    "one bucket back": (
        lambda: mods.t5_bias(np.ones((4, 1)), bidirectional=False), "expected two at least"
    ),
    "near": (lambda: mods.t5_buckets(32, max_distance=8), "max_distance is 8, expected above 8"),
    "no cap": (lambda: mods.soft_cap(None), "soft_cap: cap is None"),
    "zero cap": (lambda: mods.soft_cap(0.0), "soft_cap: cap is 0.0, expected above 0"),
    "negative caps": (lambda: mods.soft_cap(np.array([1.0, -1.0])), "expected above 0"),
    "scale of heads": (lambda: attend(q, k, v, scale=np.ones(4)), "scale has shape (4,)"),
    "scale of all": (lambda: attend(q, k, v, scale=np.ones((2, 6, 4, 4))), "scale has shape"),
    "scale as text": (lambda: attend(q, k, v, scale="1"), "scale is '1', expected a number"),
    "scale as list": (lambda: attend(q, k, v, scale=[1.0]), "scale is [1.0], expected a number"),
    "scale as flag": (lambda: attend(q, k, v, scale=True), "scale is True, expected a number"),
    "positions as text": (lambda: attend(q, k, v, q_positions=["a"] * 6), "expected integers"),
    "halves": (lambda: attend(q, k, v, q_positions=[0.5] * 6), "expected integers"),
    "normalize": (lambda: linear_attend(q, k, v, normalize=True), "normalize is True, expected"),
    "float8": (lambda: attend(FLOAT8, FLOAT8, FLOAT8), "q has dtype float8_e4m3fn, expected"),
    "linear float8": (lambda: linear_attend(FLOAT8, k, v), "q has dtype float8_e4m3fn, expected"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(name):
    call, message = WRONG[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert message in str(caught.value)


def test_lists_are_taken_where_arrays_are():
    slopes = [0.5, 0.25, 0.125, 0.0625]
    want = attend(q, k, v, mods=(mods.alibi(jnp.asarray(slopes)),), q_positions=np.arange(6))
    close(attend(q, k, v, mods=(mods.alibi(slopes),), q_positions=[0, 1, 2, 3, 4, 5]), want, 0)


def test_a_scale_for_each_head():
    scale = np.array([[0.5], [1.0], [2.0], [0.25]])
    want = attend(q * scale.astype(np.float32), k, v, scale=1.0)
    close(attend(q, k, v, scale=scale), want, 1e-6)


NORMALIZERS = {
    "softmax": normalizers.softmax, "one": normalizers.softmax_one,
    "sigmoid": normalizers.sigmoid(), "relu": normalizers.relu(2),
    "identity": normalizers.identity, "exp": normalizers.exp,
    "laplace": normalizers.laplace, "softpick": normalizers.softpick(),
    "signed": normalizers.signed, "taylor": normalizers.taylor(4), "hard": normalizers.hard,
    "softplus": normalizers.softplus(), "sharpened": normalizers.softplus(3, 0.5),
    "clipped": normalizers.clipped_softmax(-0.1), "entmax": normalizers.entmax(1.5),
    "sparsemax": normalizers.sparsemax,
}  # fmt: skip


@pytest.mark.parametrize("name", NORMALIZERS)
def test_minus_infinity_is_a_mask_under_every_normalizer(name):
    """In value and gradient, also for a row without anything."""
    ok = np.random.default_rng(0).random((2, 1, 6, 6)) < 0.6
    ok[0, 0, 2] = False
    bias = mods.pair_bias(np.where(ok, 0.0, -np.inf).astype(np.float32))

    def run(impl, **more):
        f = lambda q, v: attend(q, k, v, normalizer=NORMALIZERS[name], impl=impl, **more)
        return jax.jit(lambda q, v: (f(q, v), jax.grad(lambda *x: f(*x).sum(), (0, 1))(q, v)))(q, v)

    want = run("dense", mask=masks.array(ok))
    for impl in ("dense", Blockwise(4, 4)):
        jax.tree.map(lambda a, b: close(a, b, 2e-5), run(impl, mods=(bias,)), want)


@pytest.mark.parametrize("name", [n for n in NORMALIZERS if n != "exp"])
def test_scores_of_a_hundred_million(name):
    """Dense and blockwise are alike, and what float64 gives."""
    scores = 1e8 * np.array([[1, -1, 0, 0.5, 1, -2]] * 5 + [[-1, -2, -1, -3, -1, -1]])
    run = lambda impl, dtype: attend(
        *(x.astype(dtype) for x in (0 * q, k, v)), normalizer=NORMALIZERS[name], impl=impl,
        mods=(mods.pair_bias(scores.astype(dtype)),),
    )  # fmt: skip
    got = [np.asarray(run(impl, np.float32)) for impl in ("dense", Blockwise(4, 4))]
    with jax.enable_x64():
        want = np.asarray(run("dense", np.float64))
    top = np.abs(want).max()
    for out in got:
        assert np.isfinite(out).all()
        np.testing.assert_allclose(out / max(top, 1.0), want / max(top, 1.0), atol=1e-5)
