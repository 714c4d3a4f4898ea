"""The laws on one device, for attention and mixers alike."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import jaxtyped

from attnjax.catalogue import OPS
from tests.laws.cases import (
    Case,
    applies,
    arrays,
    batch,
    case,
    cast,
    close,
    close_trees,
    default_mask,
    direction,
    expected,
    forms_of,
    lengths,
    moved,
    others,
    takes,
    tokens_of,
)


def ops(*laws):
    """Every op under the laws."""
    some = [op for op in OPS if all(applies(op, law) for law in laws)]
    return pytest.mark.parametrize("op", some, ids=lambda op: op.name)


def ops_in_forms(*laws):
    """Every op under the laws, in each of its forms."""
    some = [op for op in OPS if all(applies(op, law) for law in laws)]
    pairs = [(op, form) for op in some for form in forms_of(op)]
    return pytest.mark.parametrize(("op", "form"), pairs, ids=[f"{o.name}-{f}" for o, f in pairs])


def wave(out):
    """A cotangent that depends on the result: that of sum -cos(3 out) / 3."""
    return jax.tree.map(lambda x: np.sin(3 * x).astype(x.dtype), jax.tree.map(np.asarray, out))


# ---------------------------------------------------------------------------------- the formula


@ops_in_forms("formula")
def test_formula(op, form):
    """The op equals its oracle, under its default mask."""
    with jax.enable_x64():
        c = case(op, form)
        close(c.value(c.given(1, jnp.float64)), expected(op, c.sample(1)), 1e-10)


@ops_in_forms("masked")
def test_masked_formula(op, form):
    """The op equals its oracle under any mask, with a query that may see nothing."""
    with jax.enable_x64():
        c = case(op, form)
        args = c.sample(1)
        given = c.given(1, jnp.float64)
        T, S = lengths(op, given)
        ok = np.random.default_rng(0).random((2, 1, T, S)) < 0.6
        ok[0, 0, 2] = False
        out, _ = c.pull(given, jnp.ones_like(c.value(given)), ok)
        close(out, expected(op, args, ok), 1e-10)


@ops("annotations")
def test_annotations(op):
    """Every array that goes in and comes out has the shape and dtype that the signature spells."""
    args = op.sample(seed=1)
    checked = jaxtyped(op.fn, typechecker=beartype)
    jax.eval_shape(lambda given: checked(**given, **others(args)), arrays(args))


@ops("lengths")
def test_other_lengths(op):
    """One token, and more keys than queries or fewer, through tiles of every kind."""
    unequal = ({"T": 7, "S": 12}, {"T": 12, "S": 7}) if applies(op, "unequal") else ()
    for sizes in ({"T": 1, "S": 1}, *unequal):
        c = Case(op, "default", **sizes)
        close(c.value(c.given(2)), expected(op, c.sample(2)), 2e-5)


@ops("limits")
def test_limits(op):
    for limit in op.limits:
        c = Case(op, "truth" if op.engine else None, draw=limit.given)
        if "impl" in op.params:
            c.rest["impl"] = None
        usual = takes(limit.equals, c.sample(3))
        rest = others(usual)
        want = jax.jit(lambda given, rest=rest, limit=limit: limit.equals(**given, **rest))
        close(c.value(c.given(3)), want(arrays(usual)), 2e-5)


# ------------------------------------------------------------------------------------ derivatives


@ops("implementations")
def test_implementations_agree(op):
    """In value and in every gradient."""
    with jax.enable_x64():
        truth, tiles = case(op, "truth"), case(op, "tiles")
        given = truth.given(4, jnp.float64)
        ct = wave(truth.value(given))
        close_trees(tiles.pull(given, ct), truth.pull(given, ct), 1e-10)


@ops("gradients")
def test_gradients(op):
    """Those of finite differences of the readable form, along one direction through everything."""
    with jax.enable_x64():
        c = case(op, "truth")
        given = c.given(5, jnp.float64)
        loss = lambda x: -np.cos(3 * np.asarray(c.value(x))).sum() / 3
        step, e = direction(given, seed=1), 1e-6
        slope = (loss(moved(given, step, e)) - loss(moved(given, step, -e))) / (2 * e)
        _, grads = c.pull(given, wave(c.value(given)))
        got = jax.tree.map(lambda g, dx: np.vdot(np.asarray(g), np.asarray(dx)), grads, step)
        close(sum(jax.tree.leaves(got)), slope, 1e-6)


@ops("jvp")
def test_forward_mode_and_second_order(op):
    """jvp and Hessian-vector products, in the readable form and in tiles."""
    with jax.enable_x64():
        c = case(op, "truth")
        given = c.given(6, jnp.float64)
        step, e = direction(given, seed=2), 1e-6
        ahead, behind = moved(given, step, e), moved(given, step, -e)
        difference = lambda f: jax.tree.map(
            lambda a, b: (np.asarray(a) - np.asarray(b)) / (2 * e), f(ahead), f(behind)
        )
        jvp = lambda f: jax.jit(lambda x, dx: jax.jvp(f, (x,), (dx,)))(given, step)
        ct = wave(c.value(given))
        slope = lambda c: lambda x: jax.vjp(c.call, x)[1](ct)[0]
        out, tangent = jvp(c.call)
        close(tangent, difference(c.value), 1e-5)
        hvp = jvp(slope(c))[1]
        close_trees(hvp, difference(lambda x: c.pull(x, ct)[1]), 1e-5)
        if applies(op, "implementations"):
            tiles = case(op, "tiles")
            close_trees(jvp(tiles.call), (out, tangent), 1e-10)
            close_trees(jvp(slope(tiles))[1], hvp, 1e-9)
            along = lambda x: jax.jvp(tiles.call, (x,), (step,))[1]
            close_trees(jax.jit(lambda x: jax.vjp(along, x)[1](ct)[0])(given), hvp, 1e-9)


# --------------------------------------------------------------------------- JAX's transformations


@ops("jit")
def test_jit_equals_eager_and_compiles_once(op):
    c = Case(op, "default")
    chex.clear_trace_counter()  # it counts by the name of the function
    jitted = jax.jit(chex.assert_max_traces(c.call, n=1))
    first, second = c.given(7), c.given(8)
    got = [jitted(first), jitted(second)]
    close_trees(got[0], c.call(first), 2e-6)


@ops("vmap")
def test_vmap_and_equal_bits_twice(op):
    c = Case(op, "default")
    given = c.given(9)
    batched = {n for n, shape in op.shapes.items() if shape[:1] == ("B",) and n in given}
    assert {given[n].shape[0] for n in batched} == {batch(op, given)}
    axes = {name: 0 if name in batched else None for name in given}
    one = lambda x: c.call({n: a[None] if n in batched else a for n, a in x.items()})[0]
    want = np.asarray(c.value(given))
    close(jax.jit(jax.vmap(one, in_axes=(axes,)))(given), want, 2e-6)
    assert np.array_equal(np.asarray(c.value(given)), want)


# ----------------------------------------------------------------------------- runs in segments


def segment(op, given, start, stop):
    tokens = tokens_of(op, given)
    return {n: x[:, start:stop] if n in tokens else x for n, x in given.items()}


@ops_in_forms("split")
def test_a_run_split_anywhere_equals_the_whole(op, form):
    """Also one token at a time, as in decoding."""
    with jax.enable_x64():
        c = case(op, form)
        given = c.given(16, jnp.float64)
        T = lengths(op, given)[0]
        want = c.value(given)
        run = jax.jit(lambda x, state: op.fn(**x, **c.rest, state=state, return_state=True))
        for cuts in ((0, 1, 6, T), tuple(range(T + 1))):
            state, outs = None, []
            for start, stop in zip(cuts, cuts[1:], strict=False):
                out, state = run(segment(op, given, start, stop), state)
                outs.append(np.asarray(out))
            close(np.concatenate(outs, axis=1), want, 1e-10)


@ops("split")
def test_gradients_flow_back_through_the_states(op):
    with jax.enable_x64():
        c = case(op, forms_of(op)[-1])
        given = c.given(17, jnp.float64)
        T = lengths(op, given)[0]

        def in_parts(given):
            state, outs = None, []
            for start, stop in ((0, 4), (4, 5), (5, T)):
                part = segment(op, given, start, stop)
                out, state = op.fn(**part, **c.rest, state=state, return_state=True)
                outs.append(out)
            return jnp.concatenate(outs, axis=1)

        ct = wave(c.value(given))
        parts = jax.jit(lambda x: jax.vjp(in_parts, x)[1](ct)[0])(given)
        close_trees(parts, c.pull(given, ct)[1], 1e-9)


@ops("documents")
def test_a_packed_row_is_its_documents_one_by_one(op):
    """In value, and in the gradient of every argument."""
    with jax.enable_x64():
        c = case(op, forms_of(op)[-1])
        given = c.given(18, jnp.float64)
        T = lengths(op, given)[0]
        ends = (0, 4, 5, T)

        def one_by_one(given):
            parts = [segment(op, given, *at) for at in itertools.pairwise(ends)]
            return jnp.concatenate([op.fn(**part, **c.rest) for part in parts], axis=1)

        want, pull = jax.vjp(jax.jit(one_by_one), given)
        ids = np.broadcast_to(np.repeat([7, 0, 3], np.diff(ends)), want.shape[:2])
        packed = lambda given: op.fn(**given, **c.rest, documents=ids)
        got, pull_packed = jax.vjp(jax.jit(packed), given)
        close(got, want, 1e-10)
        close_trees(pull_packed(wave(want))[0], pull(wave(want))[0], 1e-9)


@ops("documents")
def test_padding_and_a_cut_change_no_document(op):
    """Padding before, between and behind documents reads nothing; a state goes on in one."""
    with jax.enable_x64():
        c = case(op, forms_of(op)[-1])
        given, other = c.given(18, jnp.float64), c.given(19, jnp.float64)
        T = lengths(op, given)[0]
        ids = np.repeat([7, 0, 3], [4, 1, T - 5])
        slots, row = np.delete(np.arange(T + 3), (0, 5, T + 2)), np.full(T + 3, -1)
        row[slots] = ids
        longer = dict(given)
        for name in tokens_of(op, given):
            noise = jnp.concatenate([other[name]] * 2, axis=1)[:, : T + 3]
            longer[name] = noise.at[:, slots].set(given[name])
        want = op.fn(**given, **c.rest, documents=ids)
        got = op.fn(**longer, **c.rest, documents=row)
        close(got[:, slots], want, 1e-10)
        assert not np.delete(np.asarray(got), slots, axis=1).any()
        state, outs = None, []
        for start, stop in ((0, 4), (4, T + 3)) if applies(op, "split") else ():
            part = segment(op, longer, start, stop)
            out, state = op.fn(
                **part, **c.rest, documents=row[start:stop], state=state, return_state=True
            )
            outs.append(out)
        assert not outs or np.allclose(np.concatenate(outs, axis=1), got, atol=1e-10)


# ------------------------------------------------------------------------- what must not leak


def mask_for_future(op, given):
    """The mask under which the future must not leak: none for ops that never read it."""
    T, S = lengths(op, given)
    return np.tri(T, S, dtype=bool)[None, None] if op.may_read == "mask" else None


@ops_in_forms("future")
def test_the_future(op, form):
    """What a token may not read changes nothing, by perturbation and by gradient; the rest does.

    An op that takes a mask runs under a causal one.  One that reads all must react to the future.
    """
    with jax.enable_x64():
        c, now = case(op, form), 5
        past, other = c.given(10, jnp.float64), c.given(11, jnp.float64)
        tokens = tokens_of(op, past)
        mixed = dict(past)
        for name in tokens:
            mixed[name] = jnp.concatenate([past[name][:, :now], other[name][:, now:]], axis=1)
        ok = mask_for_future(op, past)
        early = np.zeros(np.shape(c.value(past)))
        T = lengths(op, past)[0]
        rows = (slice(None),) * (1 if early.shape[1] == T else 2)  # or heads first
        before, behind = (*rows, slice(now)), (*rows, slice(now, None))
        early[before] = np.random.default_rng(0).standard_normal(early[before].shape)
        out, grads = c.pull(past, early, ok)
        after, _ = c.pull(mixed, early, ok)
        assert not np.allclose(after[behind], out[behind], atol=1e-3)
        if op.may_read == "all":
            assert not np.allclose(after[before], out[before], atol=1e-3)
            return
        close(after[before], out[before], 1e-12)
        for name in tokens:
            assert not np.any(grads[name][:, now:]), f"the future of {name} has a gradient"
            assert np.any(grads[name][:, :now])


@ops_in_forms("masked", "padding")
def test_padding_does_not_leak_even_as_nan(op, form):
    with jax.enable_x64():
        c = case(op, form)
        given = c.given(12, jnp.float64)
        T, S = lengths(op, given)
        ok = np.broadcast_to(np.asarray(default_mask(op).dense(T, S)), (2, 1, T, S)).copy()
        ok[1, :, 6:], ok[1, :, :, 6:] = False, False
        clean, spoiled = dict(given), dict(given)
        for name in tokens_of(op, given):
            clean[name] = given[name].at[1, 6:].set(0.0)
            spoiled[name] = given[name].at[1, 6:].set(jnp.nan)
        ct = wave(c.value(given))
        close_trees(c.pull(spoiled, ct, ok), c.pull(clean, ct, ok), 1e-10)


@ops_in_forms("masked", "empty_rows")
def test_rows_with_nothing_allowed_give_zeros_and_no_gradient(op, form):
    with jax.enable_x64():
        c = case(op, form)
        given = c.given(13, jnp.float64)
        T, S = lengths(op, given)
        ok = np.tri(T, S, dtype=bool)[None, None].copy()
        ok[..., 3, :] = False
        out, grads = c.pull(given, jnp.ones_like(c.value(given)), ok)
        row = out[:, 3] if out.shape[1] == T else out[:, :, 3]
        assert not np.any(row)
        assert "q" not in grads or not np.any(grads["q"][:, 3])
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


# ----------------------------------------------------------------------- heads and precision


@ops_in_forms("grouped")
def test_grouped_heads_equal_repeated_heads(op, form):
    with jax.enable_x64():
        c = case(op, form)
        given = c.given(14, jnp.float64)
        shared = {n: s.index("K") for n, s in op.shapes.items() if "K" in s and n in given}
        N, K = given["q"].shape[2], given[next(iter(shared))].shape[next(iter(shared.values()))]
        assert N > K
        repeat = lambda x, axis: jnp.asarray(np.repeat(np.asarray(x), N // K, axis))
        repeated = given | {n: repeat(given[n], axis) for n, axis in shared.items()}
        close(c.value(given), c.value(repeated), 1e-10)


@ops_in_forms("bfloat16")
def test_bfloat16_error_is_at_most_twice_the_naive_formulas(op, form, in_their_own_dtype):
    c = Case(op, form, T=24, S=24)
    args = c.sample(15)
    half = c.given(15, jnp.bfloat16)
    truth = expected(op, args | cast(half, jnp.float32))
    error = lambda out: np.abs(np.asarray(out, np.float64) - truth).max()
    got = c.value(half)
    assert got.dtype == jnp.bfloat16
    in_their_own_dtype()
    naive = Case(op, "truth", T=24, S=24).value(half)
    assert error(got) <= 2 * error(naive)


# ------------------------------------------------------------------------------ losses and policies


@ops("loss")
def test_a_loss_is_a_number_with_finite_gradients(op):
    """Also where inputs are zero, or large enough to saturate what they go through."""
    c = case(op, None)
    for scale in (1.0, 0.0, 1e3):
        given = jax.tree.map(lambda x, scale=scale: scale * x, c.given(19))
        loss, grads = c.pull(given, jnp.ones(()))
        assert loss.shape == () and np.isfinite(loss)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


@ops("policy")
def test_a_policy_selects_within_its_budget(op):
    """Blocks that exist, each once, none of the future, the own one always; top_k of them at most.

    What a policy that reads the past selects for a query does not change with later tokens.
    """
    args, now = op.sample(20), 5
    chosen = op.fn(**args)
    T, S = lengths(op, arrays(args))
    n = -(-S // chosen.block_k)
    indices, valid = np.asarray(chosen.indices), np.asarray(chosen.valid)
    assert ((indices >= 0) & (indices < n))[valid].all()
    seen = (np.where(valid, indices, -1)[..., None] == np.arange(n)).sum(-2)  # (B,U,X,n)
    assert seen.max() == 1
    first = np.arange(seen.shape[1]) * chosen.block_q
    own, last = first // chosen.block_k, np.minimum(first + chosen.block_q, T) - 1
    assert seen[:, np.arange(len(own)), :, own].all()
    assert not seen.transpose(0, 2, 1, 3)[..., np.arange(n) * chosen.block_k > last[:, None]].any()
    if "top_k" in args:
        assert valid.sum(-1).max() <= args["top_k"]
    if op.may_read == "past":
        other = op.sample(21)
        later = {name: args[name].at[:, now:].set(other[name][:, now:]) for name in ("q", "k")}
        again = op.fn(**args | later)
        early = last < now
        np.testing.assert_array_equal(again.valid[:, early], valid[:, early])
        same = np.where(valid, np.asarray(again.indices) == indices, True)
        assert same[:, early].all()
