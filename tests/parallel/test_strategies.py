"""Strategies inside `jax.shard_map` over 8 virtual devices: what the law of devices cannot see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, attend_state, linear_attend, masks
from attnjax import normalizers as norm
from attnjax.core.blocks.select import every_block
from attnjax.parallel import (
    AllGather,
    Ring,
    layout,
    unlayout,
)
from tests.helpers import close, draw
from tests.parallel.inside import (
    INSIDE,
    LINE,
    B,
    D,
    N,
    P,
    T,
    across,
    both,
    drawn,
    on_one_device,
    op,
    places,
    slowly,
    tokens_first,
)

pytestmark = pytest.mark.usefixtures("fresh_programs_everywhere")


@pytest.mark.parametrize(
    "case",
    slowly(
        [*((name, jnp.float64) for name in ("striped", "ulysses", "gather")), ("usp", jnp.float32)],
        [*((name, jnp.float64) for name in INSIDE), ("zigzag", jnp.float32)],
    ),
    ids=lambda case: f"{case[0]}-{case[1].__name__}",
)
def test_tokens_in_layout_give_what_one_device_gives(case):
    """With shard_map's check on: gradients of what is replicated are those of all devices."""
    name, dtype = case
    mesh, strategy = INSIDE[name]
    with jax.enable_x64(dtype == jnp.float64):
        given, at = drawn(dtype=dtype), places(mesh, strategy)
        inside = across(lambda x: op(x, strategy), mesh, strategy.sharding, at)
        tolerance = 1e-10 if dtype == jnp.float64 else 1e-5
        close(both(inside)(given), on_one_device(0, dtype), tolerance)


def test_gradients_taken_inside_are_shares_that_add_up():
    with jax.enable_x64():
        given, strategy = drawn(), Ring("sp")
        loss = lambda x, impl: jnp.sum(jnp.sin(op(x, impl)))

        def inside(x):
            grads = jax.grad(loss)(x, strategy)
            return {**grads, **{n: jax.lax.psum(grads[n], "sp") for n in ("table", "sink")}}

        specs = tokens_first(strategy.sharding)
        run = jax.shard_map(inside, mesh=LINE, in_specs=(specs,), out_specs=specs, check_vma=False)
        close(jax.jit(run)(given), jax.jit(jax.grad(loss), static_argnums=1)(given, "dense"))


@pytest.mark.parametrize(
    "case",
    slowly(
        ["ring two_sided", "usp traced", "gather array"],
        ["ring ahead", "ring window", "zigzag documents", "zigzag traced", "zigzag window",
         "usp window", "usp array"],
    ),
)  # fmt: skip
def test_every_mask_is_that_of_the_whole_sequence(case):
    name, mask = case.split()
    mesh, strategy = INSIDE[name]
    ids = np.sort(np.random.default_rng(0).integers(0, 5, (B, T)))
    some = np.random.default_rng(1).random((B, N, T, T)) < 0.4
    chosen = {
        "documents": masks.causal & masks.document(ids),
        "window": masks.causal & masks.window(3),
        "ahead": masks.window(0, 5),
        "two_sided": masks.window(4, 4),
        "array": masks.array(some),
    }
    with jax.enable_x64():
        given, at = drawn(seed=1), places(mesh, strategy)

        def run(ids):
            here = masks.causal & masks.document(ids) if mask == "traced" else chosen[mask]
            inside = across(lambda x: op(x, strategy, here), mesh, strategy.sharding, at, False)
            return both(inside)(given), both(lambda x: op(x, "dense", here))(given)

        close(*(jax.jit(run)(jnp.asarray(ids)) if mask == "traced" else run(ids)))


NORMALIZERS = {
    "softmax": norm.softmax, "one": norm.softmax_one, "sigmoid": norm.sigmoid(-1.0),
    "relu": norm.relu(2), "softpick": norm.softpick(), "signed": norm.signed,
    "taylor": norm.taylor(), "softplus": norm.softplus(2, 0.5),
    "clipped": norm.clipped_softmax(-0.05), "entmax": norm.entmax(1.5), "hard": norm.hard,
}  # fmt: skip


@pytest.mark.parametrize("normalizer", slowly(["softpick", "clipped"], NORMALIZERS))
def test_every_normalizer_goes_around_the_ring(normalizer):
    """Also those of several passes, which walk as often."""
    with jax.enable_x64():
        given, strategy = drawn(seed=2), Ring("sp", "zigzag")
        run = lambda x, impl: op(x, impl, normalizer=NORMALIZERS[normalizer])
        at = places(LINE, strategy)
        inside = across(lambda x: run(x, strategy), LINE, strategy.sharding, at, False)
        close(both(inside)(given), both(lambda x: run(x, "dense"))(given), 1e-9)


def test_documents_laid_out_one_by_one_by_their_positions():
    """Layout "given": any order at all; padding that nobody may see stands anywhere."""
    ids = np.repeat([0, 1, 2], [9, 5, 16])
    ids = np.concatenate([ids, [-1, -1]])
    with jax.enable_x64():
        given = drawn(seed=3)
        tokens = {"q": given["q"], "k": given["k"], "v": given["v"], "ids": np.tile(ids, (B, 1))}
        batch = layout(tokens, 8, documents=ids)
        mask = masks.causal & masks.document(ids)

        def inside(x, positions, strategy):
            return attend(
                x["q"], x["k"], x["v"], mask=mask, impl=strategy,
                q_positions=positions, k_positions=positions,
            )  # fmt: skip

        want = attend(given["q"], given["k"], given["v"], mask=mask, impl="dense")
        for strategy in (Ring("sp", "given"), AllGather("sp", "given")):
            run = jax.shard_map(
                functools.partial(inside, strategy=strategy), mesh=LINE,
                in_specs=(P(None, "sp"), P("sp")), out_specs=P(None, "sp"),
            )  # fmt: skip
            out = jax.jit(run)(batch.values, batch.positions)
            close(unlayout(batch.replace(values=out)), want)


@pytest.mark.parametrize("name", slowly(["ring", "ulysses", "usp", "gather"], INSIDE))
def test_a_bad_key_reaches_exactly_those_who_may_see_it(name):
    mesh, strategy = INSIDE[name]
    given, at = drawn(seed=4, dtype=jnp.float32), places(mesh, strategy)
    given["k"] = given["k"].at[0, 20, 1, 3].set(jnp.nan)
    given["v"] = given["v"].at[1, 11, 0, 0].set(jnp.inf)
    given["q"] = given["q"].at[0, 5, 2].set(jnp.nan)
    inside = across(lambda x: op(x, strategy), mesh, strategy.sharding, at, False)
    got, want = jax.jit(inside)(given), jax.jit(lambda x: op(x, "dense"))(given)
    assert np.isnan(want).any() and not np.isnan(want).all()
    assert np.array_equal(np.isnan(got), np.isnan(want))
    close(np.nan_to_num(got), np.nan_to_num(want), 3e-6)


@pytest.mark.parametrize("name", slowly(["ring", "gather"], ["ulysses", "usp"]))
def test_bfloat16_is_as_exact_as_on_one_device(name):
    """In value, and in the gradients of one cotangent.

    With shard_map's check on; without it shard_map itself adds up shares in bfloat16.
    """
    mesh, strategy = INSIDE[name]
    given, at = drawn(seed=5, dtype=jnp.bfloat16), places(mesh, strategy)
    inside = across(lambda x: op(x, strategy), mesh, strategy.sharding, at)
    cotangent = draw(B, T, N, D, seed=1, dtype=jnp.bfloat16)

    def pulled(fn, given, cotangent):
        out, pull = jax.vjp(fn, given)
        return out, pull(cotangent)

    run = jax.jit(pulled, static_argnums=0)
    with jax.enable_x64():
        wide = jax.tree.map(lambda a: a.astype(float), (given, cotangent))
        exact = run(lambda x: op(x, "dense"), *wide)
    got, one = (run(fn, given, cotangent) for fn in (inside, lambda x: op(x, "blockwise")))
    error = lambda a, b: np.abs(np.asarray(a, np.float64) - np.asarray(b)).max()
    for a, b, c in zip(*map(jax.tree.leaves, (got, one, exact)), strict=True):
        assert a.dtype == jnp.bfloat16 and error(a, c) <= 1.5 * error(b, c) + 1e-3


@pytest.mark.parametrize("name", ["ring", "ulysses", "usp", "gather"])
def test_states_are_those_of_all_keys(name):
    mesh, strategy = INSIDE[name]
    given, at = drawn(seed=6, dtype=jnp.float32), places(mesh, strategy)
    run = lambda x, impl: attend_state(x["q"], x["k"], x["v"], mask=masks.causal, impl=impl)

    def inside(x):
        state = run(x, strategy)
        return jnp.swapaxes(state.values / state.sums[0], 1, 2)

    want = run(given, "dense")
    got = jax.jit(across(inside, mesh, strategy.sharding, at))(given)
    close(got, jnp.swapaxes(want.values / want.sums[0], 1, 2), 3e-6)


def test_engines_run_on_the_batches_of_many_devices():
    """Without any strategy, inside shard_map with its check on: loops, gradients of replicas."""
    with jax.enable_x64():
        given = jax.tree.map(lambda x: jnp.concatenate([x] * 4) if x.ndim > 2 else x, drawn(seed=8))
        given = {**given, "decay": given["log_f"], "pair": given["pair"][:N]}

        def run(x, impl, linear):
            a = op({**x, "pair": x["pair"] * 0.5}, impl)
            chosen = every_block(x["q"].shape[0], T, T, block_q=4, block_k=4)
            b = attend(x["q"], x["k"], x["v"], blocks=chosen, impl=impl)
            c = linear_attend(x["q"], x["k"], x["v"], log_decay=x["decay"], impl=linear)
            return jnp.concatenate([a, b, c], axis=-1)

        specs = {n: P() if n in ("table", "sink", "pair") else P("sp") for n in given}
        inside = lambda linear: jax.shard_map(
            functools.partial(run, impl="blockwise", linear=linear),
            mesh=LINE, in_specs=(specs,), out_specs=P("sp"),
        )  # fmt: skip
        want = both(lambda x: run(x, "dense", "recurrent"))(given)
        close(both(inside("chunked"))(given), want, 1e-9)
        jax.eval_shape(both(inside(None)), given)  # passes the check of types
