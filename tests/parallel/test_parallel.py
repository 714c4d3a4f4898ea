"""Strategies inside `jax.shard_map` over 8 virtual devices: what the law of devices cannot see."""

import functools
import itertools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from attnjax import Blockwise, attend, attend_state, explain, linear_attend, masks, mods
from attnjax import normalizers as norm
from attnjax.core.blocks.select import every_block, top_k
from attnjax.core.pairwise.operands import Shape
from attnjax.core.pairwise.tile_list import tile_list
from attnjax.ops.softmax_core import forgetting_attention, multi_head_attention
from attnjax.parallel import (
    LASP2,
    USP,
    AllGather,
    On,
    Ring,
    Ulysses,
    cumsum,
    layout,
    shard,
    unlayout,
)
from attnjax.parallel.layouts import order
from attnjax.parallel.model import costs, traffic
from attnjax.parallel.ring import Hops, hops_of
from attnjax.parallel.tokens import LayoutSharding
from attnjax.parallel.wire import sent
from tests import helpers
from tests.helpers import close, draw, qkv

pytestmark = pytest.mark.usefixtures("fresh_programs_everywhere")

B, T, N, K, H, D = 2, 32, 4, 2, 8, 6
LINE = Mesh(np.array(jax.devices()[:8]), ("sp",), axis_types=(AxisType.Auto,))
PAIR = Mesh(np.array(jax.devices()[:2]), ("sp",), axis_types=(AxisType.Auto,))
SQUARE = Mesh(
    np.array(jax.devices()[:8]).reshape(4, 2), ("ring", "head"), axis_types=(AxisType.Auto,) * 2
)
INSIDE = {
    "ring": (LINE, Ring("sp")),
    "zigzag": (LINE, Ring("sp", "zigzag")),
    "striped": (LINE, Ring("sp", "striped", Blockwise(2, 3))),
    "ulysses": (PAIR, Ulysses("sp", "zigzag")),
    "usp": (SQUARE, USP("ring", "head", "zigzag")),
    "gather": (LINE, AllGather("sp", "zigzag")),
}
slowly = functools.partial(helpers.sample, mark=pytest.mark.slow)
each = pytest.mark.parametrize("name", INSIDE)
P = PartitionSpec


def drawn(seed=0, dtype=jnp.float64):
    seeds = itertools.count(12 * seed)
    draw = lambda *shape: helpers.draw(*shape, seed=next(seeds), dtype=dtype)
    q, k, v = draw(B, T, N, H), draw(B, T, K, H), draw(B, T, K, D)
    return {
        "q": q, "k": k, "v": v,
        "log_f": -jax.nn.softplus(draw(B, T, N)), "key": draw(B, T, K),
        "pair": draw(N, T, T), "table": draw(N, 9), "sink": draw(N),
    }  # fmt: skip


def op(given, impl, mask=masks.causal, normalizer=None, **at):
    """Every kind of operand at once."""
    return attend(
        given["q"], given["k"], given["v"],
        mods=(
            mods.forget(given["log_f"]), mods.pair_bias(given["pair"]),
            mods.relative_bias(given["table"]), mods.mod(_add, key=given["key"]),
        ),
        mask=mask, normalizer=normalizer or norm.softmax_sink(given["sink"]), impl=impl, **at,
    )  # fmt: skip


def _add(score, x):
    return score + jnp.tanh(x)


def tokens_first(tokens):
    """How the operands of `op` are split."""
    along = P(None, tokens.axes)
    rows = dict.fromkeys(("q", "k", "v", "log_f", "key"), along)
    return {**rows, "pair": P(None, tokens.axes), "table": P(), "sink": P()}


def laid(given, at):
    """Operands in the order `at` of the tokens."""
    moved = {name: given[name][:, at] for name in ("q", "k", "v", "log_f", "key")}
    return {**given, **moved, "pair": given["pair"][:, at][:, :, at]}


def across(fn, mesh, tokens, at, check=True):
    """fn(given) over whole arrays, run inside shard_map on tokens in the order `at`."""
    specs, out = tokens_first(tokens), P(None, tokens.axes)
    inner = jax.shard_map(fn, mesh=mesh, in_specs=(specs,), out_specs=out, check_vma=check)
    return lambda given: inner(laid(given, at))[:, np.argsort(at)]


def both(fn):
    """Value and gradients along a fixed cotangent."""
    run = lambda x: (lambda out, pull: (out, pull(jnp.sin(3 * out))[0]))(*jax.vjp(fn, x))
    return jax.jit(run)


def places(mesh, strategy):
    tokens = strategy.sharding
    outer = tokens.axes[: len(tokens.axes) - tokens.within]
    return order(tokens.layout, int(np.prod([mesh.shape[a] for a in outer])), T)


# ------------------------------------------------------------------ inside shard_map, in layout


@pytest.mark.parametrize(
    "case",
    slowly(
        [*((name, jnp.float64) for name in INSIDE), ("usp", jnp.float32)], [("zigzag", jnp.float32)]
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
        close(both(inside)(given), both(lambda x: op(x, "dense"))(given), tolerance)


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
        ["ring ahead", "ring two_sided", "zigzag documents", "usp traced", "usp window",
         "gather array"],
        ["ring window", "zigzag traced", "zigzag window", "usp array"],
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


@pytest.mark.parametrize(
    "normalizer", slowly(["sigmoid", "softpick", "clipped", "entmax"], NORMALIZERS)
)
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
    got, want = jax.jit(inside)(given), op(given, "dense")
    assert np.isnan(want).any() and not np.isnan(want).all()
    assert np.array_equal(np.isnan(got), np.isnan(want))
    close(np.nan_to_num(got), np.nan_to_num(want), 3e-6)


@pytest.mark.parametrize("name", slowly(["ring", "gather"], ["ulysses", "usp"]))
def test_bfloat16_is_as_exact_as_on_one_device(name):
    mesh, strategy = INSIDE[name]
    given, at = drawn(seed=8, dtype=jnp.bfloat16), places(mesh, strategy)
    inside = across(lambda x: op(x, strategy), mesh, strategy.sharding, at, False)
    with jax.enable_x64():
        exact = both(lambda x: op(x, "dense"))(jax.tree.map(lambda a: a.astype(float), given))
    got, one = both(inside)(given), both(lambda x: op(x, "blockwise"))(given)
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
            b = attend(x["q"], x["k"], x["v"], blocks=chosen)
            c = linear_attend(x["q"], x["k"], x["v"], log_decay=x["decay"], impl=linear)
            return jnp.concatenate([a, b, c], axis=-1)

        specs = {n: P() if n in ("table", "sink", "pair") else P("sp") for n in given}
        for linear in ("chunked", None):
            inside = jax.shard_map(
                functools.partial(run, impl="blockwise", linear=linear), mesh=LINE,
                in_specs=(specs,), out_specs=P("sp"),
            )  # fmt: skip
            close(both(inside)(given), both(lambda x: run(x, "dense", "recurrent"))(given), 1e-9)


def test_states_of_later_devices_reach_no_earlier_one():
    q, k, v = qkv(1, 32, 2, 4, seed=1)
    beta, split = jax.nn.sigmoid(k[..., 0]), P(None, "sp")
    alone = Mesh(np.array(jax.devices()[:1]), ("sp",), axis_types=(AxisType.Auto,))
    fn = lambda *x: linear_attend(*x[:3], beta=x[3], impl=LASP2("sp"))
    over = lambda mesh: jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=split, out_specs=split))
    out = over(LINE)(q, k, v, beta)
    later = [x.at[:, 20:].set(0.5) for x in (q, k, v, beta)]
    assert np.array_equal(over(LINE)(*later)[:, :20], out[:, :20])
    assert np.abs(over(LINE)(*later)[:, 20:] - out[:, 20:]).max() > 0.1
    close(over(alone)(q, k, v, beta), linear_attend(q, k, v, beta=beta, impl="recurrent"), 1e-5)


def test_padding_of_linear_attention_writes_nothing_whatever_it_holds():
    q, k, v = qkv(1, 16, 2, 4)
    log_decay, beta = -jax.nn.softplus(q[..., 0]), jax.nn.sigmoid(k[..., 0])
    want = linear_attend(*(x[:, :13] for x in (q, k, v)), log_decay=log_decay[:, :13],
                         beta=beta[:, :13], return_state=True)  # fmt: skip

    def inside(q, k, v, log_decay, beta):
        strategy = LASP2("sp", "zigzag", lengths=(13, 13))
        gates = {"log_decay": log_decay, "beta": beta}
        return linear_attend(q, k, v, **gates, impl=strategy, return_state=True)

    at, split = order("zigzag", 8, 16), P(None, "sp")
    run = jax.shard_map(
        inside, mesh=LINE, in_specs=split, out_specs=(split, P()), check_vma=False
    )  # fmt: skip
    out, state = jax.jit(run)(*(x[:, at] for x in (q, k, v, log_decay, beta)))
    close((out[:, np.argsort(at)][:, :13], state), want, 1e-5)


# ---------------------------------------------------------------------------------- who walks


def _brute_hops(mask, tokens, P_, T):
    """Hops that bring a visible key to some query, from the dense mask."""
    at = order(tokens.layout, P_, T).reshape(P_, -1)
    dense = np.broadcast_to(mask.dense(T, T), (T, T))
    return {(i - j) % P_ for i in range(P_) for j in range(P_) if dense[np.ix_(at[i], at[j])].any()}


@pytest.mark.parametrize("kind", ["contiguous", "zigzag", "striped"])
@pytest.mark.parametrize(
    "mask",
    [
        masks.causal, masks.causal & masks.window(3), masks.causal & masks.window(4),
        masks.window(5, 5), masks.window(0, 4), masks.document(np.repeat(np.arange(16), 4)),
        masks.causal & (masks.window(2) | masks.sinks(1)),
    ],
    ids=str,
)  # fmt: skip
def test_walks_are_as_short_as_the_mask_allows(kind, mask):
    class Eight(LayoutSharding):
        size = parts = property(lambda self: 8)

    tokens = Eight("Ring", ("sp",), kind)
    walk = hops_of(mask.resolve(64, 64), tokens, 8, 8, True)
    needed = _brute_hops(mask, tokens, 8, 64) - {0}
    assert needed <= {*range(walk.ahead + 1), *(8 - h for h in range(1, walk.behind + 1))}
    if kind != "striped":  # striped runs are judged by their ends
        shorter = [
            Hops(a, b) for a in range(8) for b in range(8 - a)
            if needed <= {*range(a + 1), *(8 - h for h in range(1, b + 1))}
        ]  # fmt: skip
        assert sum(walk) == min(map(sum, shorter))


def test_a_hop_without_visible_keys_has_no_tiles():
    """Device 0 of a causal ring: keys of device 3 lie in its future."""
    z = Shape(1, 16, 16, 1, 1, 4, 4)

    @jax.jit
    def used(q_first, k_first):
        at = jnp.arange(16, dtype=jnp.int32)
        return tile_list(masks.causal, z, 4, 4, q_first + at, k_first + at).used

    assert used(0, 48) == 0 and used(48, 0) == 16 and used(16, 16) == 10


# --------------------------------------------------------------------------- bytes, in the HLO


SIZES = costs.Attention(1, 64, 64, 8, 4, 16, 16, bytes=4, state_bytes=4)
WIRES = {
    "ring": (LINE, Ring("sp"), SIZES, lambda a: costs.ring(a, 8)),
    "zigzag": (LINE, Ring("sp", "zigzag"), SIZES, lambda a: costs.ring(a, 8, "zigzag")),
    "window": (
        LINE, Ring("sp"), replace(SIZES, mask="window", window=12), lambda a: costs.ring(a, 8),
    ),
    "ulysses": (LINE, Ulysses("sp"), SIZES, lambda a: costs.ulysses(a, 8)),
    "gather": (LINE, AllGather("sp"), SIZES, lambda a: costs.allgather(a, 8)),
    "usp": (SQUARE, USP("ring", "head"), SIZES, lambda a: costs.usp(a, 4, 2)),
}  # fmt: skip


def wired(name):
    """The op of a strategy over whole arrays, and those arrays."""
    mesh, strategy, a, cost = WIRES[name]
    mask = masks.causal & masks.window(a.window - 1) if a.mask == "window" else masks.causal
    split = P(None, strategy.sharding.axes)
    fn = lambda q, k, v: attend(q, k, v, mask=mask, impl=strategy)
    run = jax.shard_map(fn, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    at = NamedSharding(mesh, split)
    shapes = ((a.B, a.T, a.N, a.H), (a.B, a.S, a.K, a.H), (a.B, a.S, a.K, a.D))
    return run, [jax.ShapeDtypeStruct(s, jnp.float32, sharding=at) for s in shapes], cost(a)


def compiled(fn, *args):
    return jax.jit(fn).lower(*args).compile().as_text()


@pytest.mark.parametrize("name", WIRES)
def test_bytes_on_the_wire_are_those_of_the_formula(name):
    run, args, cost = wired(name)
    forward = traffic.sent(compiled(run, *args))
    assert sum(forward.values()) == cost.forward_bytes

    def value_and_grad(q, k, v, d):
        out, pull = jax.vjp(run, q, k, v)
        return out, pull(d)

    out = jax.ShapeDtypeStruct(args[0].shape, jnp.float32, sharding=args[0].sharding)
    total = traffic.sent(compiled(value_and_grad, *args, out))
    assert sum(total.values()) == cost.forward_bytes + cost.backward_bytes
    kinds = {"ring": {"collective-permute"}, "gather": {"all-gather", "reduce-scatter"}}
    kinds |= dict.fromkeys(("zigzag", "window"), kinds["ring"]) | {"ulysses": {"all-to-all"}}
    assert set(total) == kinds.get(name, {"collective-permute", "all-to-all"})  # nothing gathered


@pytest.mark.parametrize("decay", slowly(["head", "delta"], ["none", "channel"]))
@pytest.mark.parametrize("length", slowly([64], [128]))
def test_linear_attention_gathers_states_once_each_way(decay, length):
    a = costs.Attention(1, length, length, 4, 4, 8, 8, bytes=4, mask="full")

    def run(q, k, v, decay_, beta):
        gates = {"none": {}, "delta": {"log_decay": decay_[..., 0], "beta": beta}}
        gates |= {"head": {"log_decay": decay_[..., 0]}, "channel": {"log_decay": decay_}}
        return linear_attend(q, k, v, **gates[decay], impl=LASP2("sp"))

    split = P(None, "sp")
    run = jax.shard_map(run, mesh=LINE, in_specs=split, out_specs=split, check_vma=False)
    like = lambda *shape: jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=NamedSharding(LINE, split)
    )
    wide, gate = like(1, length, 4, 8), like(1, length, 4)
    args = (wide, wide, wide, wide, gate)
    cost = costs.lasp2(a, 8, decay=decay)
    (gathered,) = traffic.collectives(compiled(run, *args))
    assert (gathered.op, gathered.count, gathered.bytes) == ("all-gather", 1, cost.forward_bytes)

    def both_ways(d, *args):
        out, pull = jax.vjp(run, *args)
        return out, pull(d)

    ways = traffic.collectives(compiled(both_ways, wide, *args))
    assert {c.op for c in ways} == {"all-gather"} and sum(c.count for c in ways) == 2
    assert sum(c.bytes for c in ways) == cost.forward_bytes + cost.backward_bytes


def test_keys_travel_in_their_own_dtype_and_heads_unrepeated():
    run, args, _ = wired("ring")
    half = [jax.ShapeDtypeStruct(a.shape, jnp.bfloat16, sharding=a.sharding) for a in args]
    text = jax.jit(run).lower(*half).as_text()
    moved = set(re.findall(r"collective_permute.*-> tensor<(\S+)>", text))
    assert moved == {"1x4x8x16xbf16"}  # 4 key heads of 8 tokens


def test_gradients_of_keys_are_added_before_they_are_rounded():
    run, args, _ = wired("gather")
    half = [jax.ShapeDtypeStruct(a.shape, jnp.bfloat16, sharding=a.sharding) for a in args]
    slope = jax.grad(lambda *x: jnp.sum(run(*x).astype(jnp.float32)), (0, 1, 2))
    text = jax.jit(slope).lower(*half).as_text()
    gathered = re.findall(r"all_gather\"\(.*?-> tensor<\S+x(\w+)>", text)
    scattered = re.findall(r"reduce_scatter\".*?-> tensor<\S+x(\w+)>", text, re.S)
    assert set(gathered) == {"bf16"} and set(scattered) == {"f32"}
    x, d = jnp.float32([1.5, -2.0]), jnp.float32([1 + 2**-20, 3 - 2**-18])  # d is no bfloat16
    out, pull = jax.vjp(lambda x: sent(lambda y: 2 * y, jnp.bfloat16, x), x)
    assert np.array_equal(out, 2 * x) and np.array_equal(pull(d)[0], 2 * d)


def test_memory_of_a_ring_is_that_of_a_share():
    """Forward and backward, at twice the tokens on twice the devices."""

    def temporary(devices, T):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("sp",), axis_types=(AxisType.Auto,))
        impl = Ring("sp", inner=Blockwise(128, 128))
        loss = lambda q, k, v: jnp.sum(attend(q, k, v, mask=masks.causal, impl=impl))
        run = jax.shard_map(
            jax.grad(loss, (0, 1, 2)), mesh=mesh, in_specs=P(None, "sp"), out_specs=P(None, "sp"),
            check_vma=False,
        )  # fmt: skip
        at = NamedSharding(mesh, P(None, "sp"))
        x = jax.ShapeDtypeStruct((1, T, 2, 64), jnp.float32, sharding=at)
        return jax.jit(run).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary(8, 8192) < 1.05 * temporary(4, 4096)


def test_sending_waits_for_no_tile_and_no_tile_for_sending():
    """Inside the loop over hops: neither is computed from the other, so they can overlap."""
    run, args, _ = wired("ring")
    text = compiled(run, *args)
    loops = [c for c in re.split(r"\n(?=%|ENTRY)", text) if "collective-permute(" in c]
    body = next(c for c in loops if not c.startswith("ENTRY"))
    lines = dict(re.findall(r"^\s+(?:ROOT )?(%[\w.-]+) = (.*)$", body, re.M))

    def needs(name, lines=lines):
        """Everything that an instruction is computed from."""
        seen, todo = set(), [name]
        while todo:
            for found in re.findall(r"%[\w.-]+", lines.get(todo.pop(), "")):
                if found in lines and found not in seen:
                    seen.add(found)
                    todo.append(found)
        return seen

    sends = {n for n, text in lines.items() if "collective-permute(" in text}
    tiles = {n for n, text in lines.items() if " while(" in text}
    assert sends and tiles
    assert not any(needs(n) & tiles for n in sends) and not any(needs(n) & sends for n in tiles)


def test_sending_surrounds_the_tiles_where_it_is_asynchronous():
    """The schedule that XLA makes for a TPU: start, tiles, done.  Needs `pip install libtpu`."""
    pytest.importorskip("libtpu", reason="needs libtpu, to compile for a TPU without one")
    from jax.experimental import topologies

    devices = topologies.get_topology_desc("v5e:2x4", platform="tpu").devices
    mesh = Mesh(np.array(devices), ("sp",), axis_types=(AxisType.Auto,))
    split = P(None, "sp")
    fn = lambda q, k, v: attend(q, k, v, mask=masks.causal, impl=Ring("sp", "zigzag"))
    run = jax.shard_map(fn, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    like = NamedSharding(mesh, split)
    x = jax.ShapeDtypeStruct((1, 8192, 8, 128), jnp.bfloat16, sharding=like)
    loops = [c for c in re.split(r"\n(?=%|ENTRY)", compiled(run, x, x, x)) if "-start(" in c]
    steps = re.findall(r" (collective-permute-(?:start|done)|while)\(", loops[0])
    assert steps == ["collective-permute-start"] * 2 + ["while"] + ["collective-permute-done"] * 2


# ------------------------------------------------------------- sums, selections, global arrays


@pytest.mark.parametrize("kind", ["contiguous", "zigzag", "striped"])
def test_running_sums_are_those_of_the_text(kind):
    with jax.enable_x64():
        x = draw(3, T, 2)
        for mesh, strategy in (
            (LINE, Ring("sp", kind)),
            (SQUARE, USP("ring", "head", kind)),
        ):
            at, split = places(mesh, strategy), P(None, strategy.sharding.axes)
            run = jax.shard_map(
                lambda x, impl=strategy: cumsum(x, impl),
                mesh=mesh, in_specs=split, out_specs=split,
            )  # fmt: skip
            slope = jax.grad(lambda x, run=run, at=at: jnp.sum(jnp.sin(run(x[:, at]))))
            close(jax.jit(run)(x[:, at]), jnp.cumsum(x, 1)[:, at])
            close(jax.jit(slope)(x), jax.grad(lambda x: jnp.sum(jnp.sin(jnp.cumsum(x, 1))))(x))


def test_selected_blocks_of_all_keys_serve_the_queries_here():
    with jax.enable_x64():
        given = drawn(seed=7)
        scores = draw(B, T // 2, N, T // 4, seed=1)
        sizes = {"block_q": 2, "block_k": 4}
        chosen = top_k(scores, 3, **sizes)

        def attended(q, k, v, blocks, impl="dense"):
            return attend(q, k, v, blocks=blocks, mask=masks.causal, impl=impl)

        inside = functools.partial(attended, impl=AllGather("sp"))

        run = jax.shard_map(inside, mesh=LINE, in_specs=P(None, "sp"), out_specs=P(None, "sp"))
        args = given["q"], given["k"], given["v"], chosen
        want = attended(*args)
        every = attended(*args[:3], every_block(B, T, T, **sizes))
        assert np.abs(want - every).max() > 0.1
        close(jax.jit(run)(*args), want)


@pytest.mark.parametrize("sizes", [(27, 27), (1, 1), (5, 40), (40, 5)])
def test_any_lengths_are_padded_to_whole_shares(sizes):
    with jax.enable_x64():
        q, k = (draw(B, n, N, H, seed=n) for n in sizes)
        v, run = jnp.sin(k), functools.partial(attend, mask=masks.causal_to_end)
        for strategy in (Ring("sp", "zigzag"), AllGather("sp", "striped")):
            spread = jax.jit(functools.partial(run, impl=On(LINE, strategy)))
            close(spread(q, k, v), run(q, k, v, impl="dense"))


def test_shard_takes_any_mesh_and_is_told_by_explain():
    given = drawn(dtype=jnp.float32)
    args = given["q"], given["k"], given["v"], given["log_f"]
    for mesh in (LINE, jax.make_mesh((8,), ("sp",))):
        spread = shard(forgetting_attention, mesh, Ring("sp", "zigzag"))
        close(jax.jit(spread)(*args), forgetting_attention(*args), 3e-6)
    assert "Ring(axis='sp', layout='zigzag'" in str(explain(spread, *args))


# ------------------------------------------------------------------------------------ bad input


def _inside(strategy, mesh=LINE, **changes):
    given = drawn(dtype=jnp.float32) | changes
    fn = lambda q, k, v: attend(q, k, v, impl=strategy)
    split = P(None, mesh.axis_names)
    run = jax.shard_map(fn, mesh=mesh, in_specs=split, out_specs=split)
    return run(given["q"], given["k"], given["v"])


def _attend(**options):
    given = drawn(dtype=jnp.float32)
    return attend(given["q"], given["k"], given["v"], **options)


BAD = {
    "outside": (lambda: _attend(impl=Ring("sp")), "Ring: called outside jax.shard_map"),
    "outside_linear": (
        lambda: linear_attend(*(jnp.ones((1, 8, 2, 4)),) * 3, impl=LASP2("sp")),
        "LASP2: called outside jax.shard_map",
    ),
    "axis": (lambda: _inside(Ring("tp")), "axis is 'tp', expected one of the mesh's, 'sp'"),
    "axis_on": (
        lambda: On(LINE, Ring("tp")), "Ring: axis is 'tp', expected one of the mesh's, 'sp'",
    ),
    "heads": (
        lambda: _inside(Ulysses("sp")), r"N = 4 heads .* 8 devices; Ring\('sp'\) or AllGather",
    ),
    "heads_usp": (
        lambda: _inside(USP("ring", "head"), SQUARE, q=jnp.ones((B, T, 1, H)),
                        k=jnp.ones((B, T, 1, H)), v=jnp.ones((B, T, 1, D))),
        r"N = 1 heads .* 2 devices; Ring\('ring'\) can",
    ),
    "given": (lambda: _inside(Ring("sp", "given")), "without q_positions and k_positions"),
    "layout": (lambda: Ring("sp", "zig"), "layout is 'zig', expected one of 'contiguous'"),
    "same_axes": (lambda: USP("sp", "sp"), "both axes are 'sp'"),
    "lengths": (
        lambda: _inside(Ring("sp", lengths=(32, 40))), "lengths gives S = 40, expected 1 .. 32",
    ),
    "odd": (
        lambda: _inside(Ring("sp", "zigzag"), q=jnp.ones((B, 24, N, H)), k=jnp.ones((B, 24, K, H)),
                        v=jnp.ones((B, 24, K, D))),
        "zigzag needs even numbers of tokens here, not T = 3",
    ),
    "striped_linear": (
        lambda: jax.shard_map(
            lambda x: linear_attend(x, x, x, impl=LASP2("sp", "striped")),
            mesh=LINE, in_specs=P(None, "sp"), out_specs=P(None, "sp"),
        )(jnp.ones((1, 16, 2, 4))),
        "few runs of tokens",
    ),
    "wrong_engine": (
        lambda: shard(multi_head_attention, LINE, LASP2("sp"))(*(jnp.ones((1, 8, 2, 4)),) * 3),
        "LASP2 is for linear_attend",
    ),
    "positions": (
        lambda: jax.shard_map(
            lambda x: attend(x, x, x, impl=Ring("sp"), q_positions=np.arange(16)),
            mesh=LINE, in_specs=P(None, "sp"), out_specs=P(None, "sp"),
        )(jnp.ones((1, 16, 2, 4))),
        r"q_positions has shape \(16,\), expected \(T,\) = \(2,\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(case):
    call, text = BAD[case]
    with pytest.raises(ValueError, match=text):
        call()


def test_wrong_kinds_are_told():
    with pytest.raises(TypeError, match="inner is 'dense', expected None or a Blockwise"):
        Ring("sp", inner="dense")
    with pytest.raises(TypeError, match="strategy is 'ring', expected a value such as"):
        On(LINE, "ring")
    with pytest.raises(TypeError, match="takes no impl"):
        shard(jnp.sin, LINE, Ring("sp"))


def test_selections_are_refused_by_those_who_have_not_all_keys():
    given = drawn(dtype=jnp.float32)
    chosen = every_block(B, T, T, block_k=4)
    for mesh, strategy in ((LINE, Ring("sp")), (SQUARE, Ulysses("head"))):
        on = On(mesh, strategy)
        with pytest.raises(ValueError, match="blocks are selected from all keys: take AllGather"):
            attend(given["q"], given["k"], given["v"], blocks=chosen, impl=on)
