"""Laws that every catalogued variant obeys: to catalogue a variant is to test it.

A law is escaped only by a written reason in the variant's `exempt`.  Truth is float64: the oracles
are NumPy loops over the paper's formula, so a tolerance here covers rounding and nothing else.
"""

import functools
import inspect
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax.core.call
import attnjax.ops.numerics
from attnjax import Blockwise, masks
from attnjax.catalogue import VARIANTS
from tests.oracles import ORACLES

SMALL = Blockwise(4, 3)  # tiles that do not divide T and S
every = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)


def accepts(variant, name):
    return name in inspect.signature(variant.fn).parameters


def obeys(variant, law):
    if why := variant.exempt.get(law):
        pytest.skip(f"{variant.name} is exempt from {law}: {why}")


def needs(variant, name):
    if not accepts(variant, name):
        pytest.skip(f"{variant.name} takes no {name}")


def default_mask(variant):
    return inspect.signature(variant.fn).parameters["mask"].default


def arrays(args):
    return {name: x for name, x in args.items() if isinstance(x, jax.Array)}


def bound(variant, args, **options):
    """The variant as a jitted function of its array arguments alone, by name."""
    rest = {name: x for name, x in args.items() if not isinstance(x, jax.Array)}
    options = {name: x for name, x in options.items() if accepts(variant, name)}
    return jax.jit(lambda given: variant.fn(**given, **rest, **options))


def cast(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), dtype), tree)


def as_numpy(args):
    return {
        k: np.asarray(x, np.float64) if isinstance(x, jax.Array) else x for k, x in args.items()
    }


def close(got, want, tolerance):
    """Within `tolerance` of the largest value wanted: scale-free, elementwise."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))


def close_trees(got, want, tolerance):
    jax.tree.map(functools.partial(close, tolerance=tolerance), got, want)


def sequences(variant, args):
    """The arguments that have one entry per token, (B, T, ...): what past and future mean for."""
    B, T = args["q"].shape[:2]
    return [name for name, x in arrays(args).items() if x.ndim > 1 and x.shape[:2] == (B, T)]


# ------------------------------------------------------------------------------- the formula


@every
@pytest.mark.parametrize("impl", ["dense", "blockwise"])
def test_equals_the_papers_formula(variant, impl):
    if impl == "blockwise":
        needs(variant, "impl")
        obeys(variant, "blockwise")
    oracle = ORACLES[variant.name]
    with jax.enable_x64():
        args = variant.sample(seed=1)
        given = cast(arrays(args), jnp.float64)
        got = bound(variant, args, impl=SMALL if impl == "blockwise" else impl)(given)
        close(got, oracle(**as_numpy(args)), 1e-10)
        if impl == "dense" and accepts(variant, "mask"):
            z = args["q"].shape
            S = (args.get("k", args.get("v"))).shape[1]
            ok = np.random.default_rng(0).random((z[0], 1, z[1], S)) < 0.6
            ok[0, 0, 2] = False
            got = bound(variant, args, impl=impl, mask=masks.array(ok))(given)
            close(got, oracle(**as_numpy(args), allowed=ok), 1e-10)


@every
def test_other_lengths_equal_the_formula(variant):
    """One token, and more keys than queries or fewer, through tiles of every kind."""
    for sizes in ({"T": 1, "S": 1}, {"T": 7, "S": 12}, {"T": 12, "S": 7}):
        if sizes["T"] != sizes["S"] and "unequal" in variant.exempt:
            continue
        args = variant.sample(seed=2, **sizes)
        got = bound(variant, args, impl="blockwise")(arrays(args))
        close(got, ORACLES[variant.name](**as_numpy(args)), 2e-5)


@every
def test_declared_limits_hold(variant):
    for limit in variant.limits:
        args = replace(variant, inputs={**variant.inputs, **limit.given}).sample(seed=3)
        usual = {name: x for name, x in args.items() if name in variant.sample(seed=3)}
        rest = {name: x for name, x in usual.items() if not isinstance(x, jax.Array)}
        want = jax.jit(lambda given, rest=rest, limit=limit: limit.equals(**given, **rest))
        close(bound(variant, args)(arrays(args)), want(arrays(usual)), 2e-5)
    if not variant.limits:
        pytest.skip(f"{variant.name} declares no limits")


# --------------------------------------------------------------------------- implementations


@every
def test_implementations_agree_in_value_and_gradient(variant):
    needs(variant, "impl")
    obeys(variant, "blockwise")
    with jax.enable_x64():
        args = variant.sample(seed=4)
        given = cast(arrays(args), jnp.float64)
        value_and_pull = lambda impl: jax.jit(
            lambda x: (lambda out, pull: (out, pull(jnp.sin(3 * out))))(
                *jax.vjp(bound(variant, args, impl=impl), x)
            )
        )
        close_trees(value_and_pull(SMALL)(given), value_and_pull("dense")(given), 1e-10)


@every
def test_gradients_are_those_of_finite_differences(variant):
    """Of the dense form, along one direction through all arguments at once."""
    with jax.enable_x64():
        args = variant.sample(seed=5)
        given = cast(arrays(args), jnp.float64)
        loss = jax.jit(lambda x: jnp.sum(jnp.sin(bound(variant, args, impl="dense")(x))))
        keys = jax.random.split(jax.random.key(1), len(given))
        step = {k: jax.random.normal(key, x.shape) for key, (k, x) in zip(keys, given.items())}  # noqa: B905
        moved = lambda e: {k: given[k] + e * step[k] for k in given}
        e = 1e-6
        slope = (loss(moved(e)) - loss(moved(-e))) / (2 * e)
        grad = jax.jit(jax.grad(loss))(given)
        got = sum(jnp.vdot(grad[k], step[k]) for k in given)
        close(got, slope, 1e-6)


@every
def test_forward_mode_and_second_order(variant):
    """jvp on dense and on blockwise with its switch; Hessian-vector products on both."""
    obeys(variant, "jvp")
    with jax.enable_x64():
        args = variant.sample(seed=6)
        given = cast(arrays(args), jnp.float64)
        keys = jax.random.split(jax.random.key(2), len(given))
        step = {k: jax.random.normal(key, x.shape) for key, (k, x) in zip(keys, given.items())}  # noqa: B905
        dense = bound(variant, args, impl="dense")
        jvp = lambda f: jax.jit(lambda x, dx: jax.jvp(f, (x,), (dx,)))(given, step)
        out, tangent = jvp(dense)
        e = 1e-6
        moved = lambda s: {k: given[k] + s * e * step[k] for k in given}
        close(tangent, (dense(moved(1)) - dense(moved(-1))) / (2 * e), 1e-5)
        grad = lambda f: jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(f(x)))))
        hvp = jvp(grad(dense))[1]
        if accepts(variant, "impl") and "blockwise" not in variant.exempt:
            forward = bound(variant, args, impl=Blockwise(4, 3, derivative="forward"))
            close_trees(jvp(forward), (out, tangent), 1e-10)
            blockwise = bound(variant, args, impl=SMALL)
            close_trees(jvp(grad(blockwise))[1], hvp, 1e-9)
        slope = grad(dense)
        want = jax.tree.map(lambda a, b: (a - b) / (2 * e), slope(moved(1)), slope(moved(-1)))
        close_trees(hvp, want, 1e-5)


@every
def test_jit_equals_eager_without_a_second_compilation(variant):
    first, second = variant.sample(seed=7), variant.sample(seed=8)
    rest = {name: x for name, x in first.items() if name not in arrays(first)}
    rest |= {"impl": "blockwise"} if accepts(variant, "impl") else {}
    traced = 0

    def eager(given):
        nonlocal traced
        traced += 1
        return variant.fn(**given, **rest)

    jitted = jax.jit(eager)
    got = [jitted(arrays(args)) for args in (first, second)]
    assert traced == 1
    close_trees(got, [eager(arrays(args)) for args in (first, second)], 2e-6)


@every
def test_vmap_over_the_batch_and_equal_bits_twice(variant):
    args = variant.sample(seed=9)
    B = args["q"].shape[0]
    axes = {k: 0 if x.ndim > 1 and x.shape[0] == B else None for k, x in arrays(args).items()}
    fn = bound(variant, args, impl="blockwise")
    one = lambda given: fn({k: x[None] if axes[k] == 0 else x for k, x in given.items()})[0]
    want = np.asarray(fn(arrays(args)))
    close(jax.jit(jax.vmap(one, in_axes=(axes,)))(arrays(args)), want, 2e-6)
    assert np.array_equal(np.asarray(fn(arrays(args))), want)


# ------------------------------------------------------------------------- what must not leak


@every
@pytest.mark.parametrize("impl", ["dense", "blockwise"])
def test_the_future_does_not_leak(variant, impl):
    """By perturbation, bit by bit, and by gradient."""
    obeys(variant, "causal")
    past, other = variant.sample(seed=10), variant.sample(seed=11)
    now, parts = 5, sequences(variant, past)
    mixed = dict(arrays(past))
    for name in parts:
        mixed[name] = jnp.concatenate([past[name][:, :now], other[name][:, now:]], axis=1)
    fn = bound(variant, past, impl=SMALL if impl == "blockwise" else impl)
    a, b = fn(arrays(past)), fn(mixed)
    close(b[:, :now], a[:, :now], 1e-6)
    assert not np.allclose(b[:, now:], a[:, now:], atol=1e-3)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(fn(x)[:, :now]))))(arrays(past))
    for name in parts:
        assert not np.any(grad[name][:, now:]), f"the future of {name} has a gradient"
        assert np.any(grad[name][:, :now])


@every
@pytest.mark.parametrize("impl", ["dense", "blockwise"])
def test_padding_does_not_leak_even_as_nan(variant, impl):
    needs(variant, "mask")
    obeys(variant, "padding")
    args = variant.sample(seed=12)
    lengths = np.array([args["q"].shape[1], 6])
    mask = masks.lengths(lengths, lengths)
    if default_mask(variant) is not None:
        mask = mask & default_mask(variant)
    fn = bound(variant, args, impl=SMALL if impl == "blockwise" else impl, mask=mask)
    parts = sequences(variant, args)
    clean, spoiled = dict(arrays(args)), dict(arrays(args))
    for name in parts:
        clean[name] = args[name].at[1, 6:].set(0.0)
        spoiled[name] = args[name].at[1, 6:].set(jnp.nan)
    both = jax.jit(lambda x: (fn(x), jax.grad(lambda x: jnp.sum(jnp.sin(fn(x))))(x)))
    close_trees(both(spoiled), both(clean), 1e-6)


@every
@pytest.mark.parametrize("impl", ["dense", "blockwise"])
def test_rows_with_nothing_allowed_give_zeros_and_no_gradient(variant, impl):
    needs(variant, "mask")
    obeys(variant, "empty_rows")
    args = variant.sample(seed=13)
    T, S = args["q"].shape[1], args.get("k", args["v"] if "v" in args else None).shape[1]
    ok = np.tril(np.ones((T, S), bool))
    ok[3] = False
    fn = bound(variant, args, impl=SMALL if impl == "blockwise" else impl, mask=masks.array(ok))
    out = fn(arrays(args))
    row = out[:, 3] if out.shape[1] == T else out[:, :, 3]
    assert not np.any(row)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(fn(x)))))(arrays(args))
    assert not np.any(grad["q"][:, 3])
    assert all(np.isfinite(x).all() for x in grad.values())


# ----------------------------------------------------------------------- heads and precision


@every
@pytest.mark.parametrize("impl", ["dense", "blockwise"])
def test_grouped_heads_equal_repeated_heads(variant, impl):
    obeys(variant, "grouped")
    args = variant.sample(seed=14)
    G = args["q"].shape[2] // args.get("k", args.get("v")).shape[2]
    assert G > 1
    fn = bound(variant, args, impl=SMALL if impl == "blockwise" else impl)
    repeated = dict(arrays(args))
    for name in {"k", "v"} & set(repeated):
        repeated[name] = jnp.repeat(args[name], G, axis=2)
    close(fn(arrays(args)), fn(repeated), 2e-6)


@every
@pytest.mark.parametrize("impl", ["dense", "blockwise"])
def test_bfloat16_error_is_at_most_twice_the_naive_formulas(variant, impl, monkeypatch):
    obeys(variant, "bfloat16")
    args = variant.sample(seed=15, T=24, S=24)
    half = cast(arrays(args), jnp.bfloat16)
    fn = bound(variant, args, impl=SMALL if impl == "blockwise" else impl)
    exact = {**args, **{name: x.astype(jnp.float32) for name, x in half.items()}}
    truth = ORACLES[variant.name](**as_numpy(exact))
    error = lambda out: np.abs(np.asarray(out, np.float64) - truth).max()
    got = fn(half)
    assert got.dtype == jnp.bfloat16
    for module in (attnjax.core.call, attnjax.ops.numerics):
        monkeypatch.setattr(module, "working_dtype", lambda dtype: dtype)
    naive = bound(variant, args, impl="dense")(half)
    assert error(got) <= 2 * error(naive)
