"""Laws that every catalogued variant obeys: to catalogue a variant is to test it.

A default run is a sample: all formulas and limits, and of the laws that compile for long, each on
some variants, in turn, so that every variant meets several.  ATTNJAX_LAWS=all (`make laws`) runs
every law on every variant, in every form.

A law is escaped only by a written reason in the variant's `exempt`.  Truth is float64: the oracles
are NumPy loops over the paper's formula, so a tolerance here covers rounding and nothing else.
"""

import functools
import inspect
import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import Blockwise, Chunked, explain, masks, parallel
from attnjax.catalogue import VARIANTS
from tests.oracles import ORACLES

# For each engine: the readable form, tiles that do not divide T and S, tiles in forward mode, and
# the tiles that a user gets.
FORMS = {
    "attend": {
        "truth": "dense",
        "tiles": Blockwise(4, 3),
        "forward": Blockwise(4, 3, derivative="forward"),
        "default": "blockwise",
    },
    "linear_attend": {
        "truth": "recurrent",
        "tiles": Chunked(4),
        "forward": Chunked(4),
        "default": "chunked",
    },
}
either = pytest.mark.parametrize("form", ["truth", "tiles"])
every = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
ALL = os.environ.get("ATTNJAX_LAWS") == "all"


def one_in(share, start=0):
    """Every `share`-th variant from `start` on."""
    some = VARIANTS if ALL else VARIANTS[start % share :: share]
    return pytest.mark.parametrize("variant", some, ids=lambda v: v.name)


def one_in_of_a_form(share, start=0):
    """The same, in the readable form and in tiles by turns."""
    if ALL:
        return lambda test: every(either(test))
    chosen = [
        pytest.param(v, ("truth", "tiles")[i % 2], id=f"{('truth', 'tiles')[i % 2]}-{v.name}")
        for i, v in enumerate(VARIANTS[start % share :: share])
    ]
    return pytest.mark.parametrize(("variant", "form"), chosen)


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


def is_array(x):
    """An array, or a tree of nothing else."""
    leaves = jax.tree.leaves(x)
    return bool(leaves) and all(isinstance(leaf, jax.Array) for leaf in leaves)


def arrays(args):
    return {name: x for name, x in args.items() if is_array(x)}


def others(args):
    return {name: x for name, x in args.items() if not is_array(x)}


def bound(variant, args, form=None, **options):
    """The variant as a jitted function of its array arguments alone, by name."""
    if form is not None:
        options["impl"] = FORMS[variant.engine][form]
    rest = others(args)
    options = {name: x for name, x in options.items() if accepts(variant, name)}
    return jax.jit(lambda given: variant.fn(**given, **rest, **options))


def cast(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), dtype), tree)


def as_numpy(args):
    exact = lambda x: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), x)
    return {name: exact(x) if is_array(x) else x for name, x in args.items()}


def close(got, want, tolerance):
    """Within `tolerance` of the largest value wanted: scale-free, elementwise."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))


def close_trees(got, want, tolerance):
    jax.tree.map(functools.partial(close, tolerance=tolerance), got, want)


def lengths(args):
    """B and T, which the first argument begins with: q, or x where there is no q."""
    return next(iter(arrays(args).values())).shape[:2]


def sequences(args):
    """The arguments that have one entry per token, (B, T, ...): what past and future mean for."""
    B, T = lengths(args)
    return [
        name for name, x in arrays(args).items() if hasattr(x, "ndim") and x.shape[:2] == (B, T)
    ]


def direction(given, seed):
    """A random tree like `given`."""
    leaves, tree = jax.tree.flatten(given)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def moved(given, step, length):
    return jax.tree.map(lambda x, dx: x + length * dx, given, step)


# ------------------------------------------------------------------------------- the formula


@one_in_of_a_form(1)
def test_equals_the_papers_formula(variant, form):
    if form == "tiles":
        needs(variant, "impl")
        obeys(variant, "tiles")
    oracle = ORACLES[variant.name]
    with jax.enable_x64():
        args = variant.sample(seed=1)
        given = cast(arrays(args), jnp.float64)
        got = bound(variant, args, form)(given)
        close(got, oracle(**as_numpy(args)), 1e-10)
        if form == "truth" and accepts(variant, "mask"):
            z = args["q"].shape
            S = (args.get("k", args.get("v"))).shape[1]
            ok = np.random.default_rng(0).random((z[0], 1, z[1], S)) < 0.6
            ok[0, 0, 2] = False
            got = bound(variant, args, form, mask=masks.array(ok))(given)
            close(got, oracle(**as_numpy(args), allowed=ok), 1e-10)


@one_in(4)
def test_other_lengths_equal_the_formula(variant):
    """One token, and more keys than queries or fewer, through tiles of every kind."""
    for sizes in ({"T": 1, "S": 1}, {"T": 7, "S": 12}, {"T": 12, "S": 7}):
        if sizes["T"] != sizes["S"] and "unequal" in variant.exempt:
            continue
        args = variant.sample(seed=2, **sizes)
        got = bound(variant, args, "default")(arrays(args))
        close(got, ORACLES[variant.name](**as_numpy(args)), 2e-5)


@every
def test_declared_limits_hold(variant):
    for limit in variant.limits:
        args = replace(variant, inputs={**variant.inputs, **limit.given}).sample(seed=3)
        usual = {name: x for name, x in args.items() if name in variant.sample(seed=3)}
        rest = others(usual)
        want = jax.jit(lambda given, rest=rest, limit=limit: limit.equals(**given, **rest))
        close(bound(variant, args)(arrays(args)), want(arrays(usual)), 2e-5)
    if not variant.limits:
        pytest.skip(f"{variant.name} declares no limits")


# --------------------------------------------------------------------------- implementations


@one_in(3)
def test_implementations_agree_in_value_and_gradient(variant):
    needs(variant, "impl")
    obeys(variant, "tiles")
    with jax.enable_x64():
        args = variant.sample(seed=4)
        given = cast(arrays(args), jnp.float64)
        value_and_pull = lambda form: jax.jit(
            lambda x: (lambda out, pull: (out, pull(jnp.sin(3 * out))))(
                *jax.vjp(bound(variant, args, form), x)
            )
        )
        close_trees(value_and_pull("tiles")(given), value_and_pull("truth")(given), 1e-10)


@one_in(4, start=1)
def test_gradients_are_those_of_finite_differences(variant):
    """Of the dense form, along one direction through all arguments at once."""
    with jax.enable_x64():
        args = variant.sample(seed=5)
        given = cast(arrays(args), jnp.float64)
        loss = jax.jit(lambda x: jnp.sum(jnp.sin(bound(variant, args, "truth")(x))))
        step = direction(given, seed=1)
        e = 1e-6
        slope = (loss(moved(given, step, e)) - loss(moved(given, step, -e))) / (2 * e)
        grad = jax.jit(jax.grad(loss))(given)
        got = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, grad, step)))
        close(got, slope, 1e-6)


@one_in(16, start=5)
def test_forward_mode_and_second_order(variant):
    """jvp on dense and on blockwise with its switch; Hessian-vector products on both."""
    obeys(variant, "jvp")
    with jax.enable_x64():
        args = variant.sample(seed=6)
        given = cast(arrays(args), jnp.float64)
        step = direction(given, seed=2)
        dense = bound(variant, args, "truth")
        jvp = lambda f: jax.jit(lambda x, dx: jax.jvp(f, (x,), (dx,)))(given, step)
        out, tangent = jvp(dense)
        e = 1e-6
        ahead, behind = moved(given, step, e), moved(given, step, -e)
        close(tangent, (dense(ahead) - dense(behind)) / (2 * e), 1e-5)
        grad = lambda f: jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(f(x)))))
        hvp = jvp(grad(dense))[1]
        if accepts(variant, "impl") and "tiles" not in variant.exempt:
            forward = bound(variant, args, "forward")
            close_trees(jvp(forward), (out, tangent), 1e-10)
            blockwise = bound(variant, args, "tiles")
            close_trees(jvp(grad(blockwise))[1], hvp, 1e-9)
        slope = grad(dense)
        want = jax.tree.map(lambda a, b: (a - b) / (2 * e), slope(ahead), slope(behind))
        close_trees(hvp, want, 1e-5)


@one_in(10, start=2)
def test_jit_equals_eager_without_a_second_compilation(variant):
    first, second = variant.sample(seed=7), variant.sample(seed=8)
    rest = others(first)
    rest |= {"impl": FORMS[variant.engine]["default"]} if accepts(variant, "impl") else {}
    traced = 0

    def eager(given):
        nonlocal traced
        traced += 1
        return variant.fn(**given, **rest)

    jitted = jax.jit(eager)
    got = [jitted(arrays(args)) for args in (first, second)]
    assert traced == 1
    close_trees(got, [eager(arrays(args)) for args in (first, second)], 2e-6)


@one_in(3, start=1)
def test_vmap_over_the_batch_and_equal_bits_twice(variant):
    args = variant.sample(seed=9)
    B = lengths(args)[0]
    batched = lambda x: hasattr(x, "ndim") and x.ndim > 1 and x.shape[0] == B
    axes = {k: 0 if batched(x) else None for k, x in arrays(args).items()}
    fn = bound(variant, args, "default")
    one = lambda given: fn({k: x[None] if axes[k] == 0 else x for k, x in given.items()})[0]
    want = np.asarray(fn(arrays(args)))
    close(jax.jit(jax.vmap(one, in_axes=(axes,)))(arrays(args)), want, 2e-6)
    assert np.array_equal(np.asarray(fn(arrays(args))), want)


# ---------------------------------------------------------------------------- runs in segments


def in_segments(variant, args, form, cuts):
    """The variant run from cut to cut, each segment from the state that the one before left."""
    rest = others(args)
    if accepts(variant, "impl"):
        rest["impl"] = FORMS[variant.engine][form]
    tokens, T = sequences(args), lengths(args)[1]

    def run(given):
        state, outs = None, []
        for start, stop in zip((0, *cuts), (*cuts, T), strict=True):
            segment = {n: x[:, start:stop] if n in tokens else x for n, x in given.items()}
            out, state = variant.fn(**segment, **rest, state=state, return_state=True)
            outs.append(out)
        return jnp.concatenate(outs, axis=1)

    return run


@one_in_of_a_form(1)
def test_a_run_split_anywhere_equals_the_whole(variant, form):
    """Also one token at a time, as in decoding."""
    needs(variant, "state")
    obeys(variant, "split")
    with jax.enable_x64():
        args = variant.sample(seed=16)
        given = cast(arrays(args), jnp.float64)
        want = bound(variant, args, form)(given)
        T = lengths(args)[1]
        for cuts in ((1, 6), tuple(range(1, T))):
            close(jax.jit(in_segments(variant, args, form, cuts))(given), want, 1e-10)


@one_in(4, start=3)
def test_gradients_flow_back_through_the_states(variant):
    needs(variant, "state")
    obeys(variant, "split")
    with jax.enable_x64():
        args = variant.sample(seed=17)
        given = cast(arrays(args), jnp.float64)
        slope = lambda f: jax.jit(jax.grad(lambda x: (f(x) ** 2).sum()))(given)
        parts = in_segments(variant, args, "tiles", (4, 5))
        close_trees(slope(parts), slope(bound(variant, args, "tiles")), 1e-9)


# ----------------------------------------------------------------------------- many devices

MESHES = {"line": jax.make_mesh((8,), ("sp",)), "square": jax.make_mesh((4, 2), ("ring", "head"))}
STRATEGIES = {
    "attend": (
        ("line", parallel.Ring("sp")),
        ("square", parallel.Ulysses("head")),
        ("line", parallel.Ring("sp", "zigzag")),
        ("line", parallel.AllGather("sp")),
        ("square", parallel.USP("ring", "head")),
        ("line", parallel.Ring("sp", "striped")),
        ("square", parallel.USP("ring", "head", "zigzag")),
        ("square", parallel.Ulysses("head", "striped")),
        ("line", parallel.AllGather("sp", "zigzag")),
    ),
    "attend_selected": (("line", parallel.AllGather("sp")),),
    "linear_attend": (("line", parallel.LASP2("sp")), ("line", parallel.LASP2("sp", "zigzag"))),
}


def engines(variant):
    """The engines that a call of the variant goes to."""
    headlines = explain(variant.fn, **variant.sample()).calls
    return {headline.split(":")[0] for headline, _ in headlines}


def strategies(variant):
    selects = engines(variant) & {"attend_selected", "selected_state"}
    return STRATEGIES["attend_selected" if selects else variant.engine]


def in_turn(share, start=0):
    """Every `share`-th variant with a strategy of its engine, by turns; with all of them if ALL."""
    cases = []
    for i, variant in enumerate(VARIANTS if ALL else VARIANTS[start::share]):
        some = strategies(variant)
        cases += [(variant, *each) for each in (some if ALL else some[i % len(some) :][:1])]
    name = lambda strategy: "-".join(str(x) for x in vars(strategy).values() if x)
    return pytest.mark.parametrize(
        ("variant", "mesh", "strategy"),
        [pytest.param(*c, id=f"{type(c[2]).__name__}-{name(c[2])}-{c[0].name}") for c in cases],
    )


def equals_one_device(variant, mesh, strategy, dtype, tolerance):
    needs(variant, "impl")
    obeys(variant, "devices")
    args = variant.sample(seed=18)
    rest, spread = others(args), parallel.shard(variant.fn, MESHES[mesh], strategy)

    def value_and_pull(fn):
        both = lambda x: (lambda out, pull: (out, pull(jnp.sin(3 * out))))(*jax.vjp(fn, x))
        return jax.jit(both)(cast(arrays(args), dtype))

    got = value_and_pull(lambda x: spread(**x, **rest))
    close_trees(got, value_and_pull(bound(variant, args, "truth")), tolerance)


@pytest.mark.usefixtures("fresh_programs")
@in_turn(4)
def test_eight_devices_equal_one_in_value_and_gradient(variant, mesh, strategy):
    with jax.enable_x64():
        equals_one_device(variant, mesh, strategy, jnp.float64, 1e-10)


@pytest.mark.usefixtures("fresh_programs")
@in_turn(12, start=1)
def test_eight_devices_equal_one_in_float32(variant, mesh, strategy):
    equals_one_device(variant, mesh, strategy, jnp.float32, 2e-5)


# ------------------------------------------------------------------------- what must not leak


@one_in_of_a_form(2, start=1)
def test_the_future_does_not_leak(variant, form):
    """By perturbation, bit by bit, and by gradient."""
    obeys(variant, "causal")
    past, other = variant.sample(seed=10), variant.sample(seed=11)
    now, parts = 5, sequences(past)
    mixed = dict(arrays(past))
    for name in parts:
        mixed[name] = jnp.concatenate([past[name][:, :now], other[name][:, now:]], axis=1)
    fn = bound(variant, past, form)
    a, b = fn(arrays(past)), fn(mixed)
    close(b[:, :now], a[:, :now], 1e-6)
    assert not np.allclose(b[:, now:], a[:, now:], atol=1e-3)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(fn(x)[:, :now]))))(arrays(past))
    for name in parts:
        assert not np.any(grad[name][:, now:]), f"the future of {name} has a gradient"
        assert np.any(grad[name][:, :now])


@one_in_of_a_form(1)
def test_padding_does_not_leak_even_as_nan(variant, form):
    needs(variant, "mask")
    obeys(variant, "padding")
    args = variant.sample(seed=12)
    lengths = np.array([args["q"].shape[1], 6])
    mask = masks.lengths(lengths, lengths)
    if default_mask(variant) is not None:
        mask = mask & default_mask(variant)
    fn = bound(variant, args, form, mask=mask)
    parts = sequences(args)
    clean, spoiled = dict(arrays(args)), dict(arrays(args))
    for name in parts:
        clean[name] = args[name].at[1, 6:].set(0.0)
        spoiled[name] = args[name].at[1, 6:].set(jnp.nan)
    both = jax.jit(lambda x: (fn(x), jax.grad(lambda x: jnp.sum(jnp.sin(fn(x))))(x)))
    close_trees(both(spoiled), both(clean), 1e-6)


@one_in_of_a_form(1)
def test_rows_with_nothing_allowed_give_zeros_and_no_gradient(variant, form):
    needs(variant, "mask")
    obeys(variant, "empty_rows")
    args = variant.sample(seed=13)
    T, S = args["q"].shape[1], args.get("k", args["v"] if "v" in args else None).shape[1]
    ok = np.tril(np.ones((T, S), bool))
    ok[3] = False
    fn = bound(variant, args, form, mask=masks.array(ok))
    out = fn(arrays(args))
    row = out[:, 3] if out.shape[1] == T else out[:, :, 3]
    assert not np.any(row)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(fn(x)))))(arrays(args))
    assert not np.any(grad["q"][:, 3])
    assert all(np.isfinite(x).all() for x in grad.values())


# ----------------------------------------------------------------------- heads and precision


@one_in_of_a_form(3)
def test_grouped_heads_equal_repeated_heads(variant, form):
    obeys(variant, "grouped")
    args = variant.sample(seed=14)
    G = args["q"].shape[2] // args.get("k", args.get("v")).shape[2]
    assert G > 1
    fn = bound(variant, args, form)
    repeated = dict(arrays(args))
    for name in {"k", "v"} & set(repeated):
        repeated[name] = jnp.repeat(args[name], G, axis=2)
    close(fn(arrays(args)), fn(repeated), 2e-6)


@one_in_of_a_form(3, start=2)
def test_bfloat16_error_is_at_most_twice_the_naive_formulas(variant, form, in_their_own_dtype):
    obeys(variant, "bfloat16")
    args = variant.sample(seed=15, T=24, S=24)
    half = cast(arrays(args), jnp.bfloat16)
    fn = bound(variant, args, form)
    exact = {**args, **cast(half, jnp.float32)}
    truth = ORACLES[variant.name](**as_numpy(exact))
    error = lambda out: np.abs(np.asarray(out, np.float64) - truth).max()
    got = fn(half)
    assert got.dtype == jnp.bfloat16
    in_their_own_dtype()
    naive = bound(variant, args, "truth")(half)
    assert error(got) <= 2 * error(naive)
