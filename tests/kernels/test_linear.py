"""Engine 2 by Triton kernels: interpreted against the recurrence, and compiled for GPUs."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from attnjax import linear_attend, normalizers
from attnjax.core.recurrence.linear import State
from attnjax.core.recurrence.triton import Triton
from attnjax.kernels import launch
from tests import helpers
from tests.helpers import sample

KERNELS = Triton(chunk=16, interpret=True)
DECAYS = ["none", "token", "channel"]


def inputs(B=1, T=20, N=2, K=1, H=5, D=3, decay="none", delta=False, seed=0):
    """Arguments of a call, float64, and its first state."""
    draw = np.random.default_rng(seed)
    k = draw.normal(size=(B, T, K, H))
    args = {
        "q": draw.normal(size=(B, T, N, H)),
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": draw.normal(size=(B, T, K, D)),
        "start": draw.normal(size=(B, N, H, D)),
    }
    if decay != "none":
        shape = (B, T, N) if decay == "token" else (B, T, N, H)
        args["log_decay"] = -np.abs(draw.normal(size=shape))
    if delta:
        args["beta"] = draw.uniform(0, 2, (B, T, N))
    return args


def loss(args, impl):
    """A number that depends on all of the result and of the last state; and these."""
    args = dict(args)
    start = args.pop("start", None)
    out, last = linear_attend(
        **args, state=None if start is None else State(start), return_state=True, impl=impl
    )
    wide = out.astype(last.memory.dtype)
    value = jnp.sum(jnp.sin(wide)) + jnp.sum(jnp.cos(last.memory))
    return value, {"out": wide, "last": last.memory}


def pulled(args, impl, dtype, loss=loss):
    """The results, and the gradient to each argument."""
    args = {name: jnp.asarray(x, dtype) for name, x in args.items()}
    (_, results), grads = jax.jit(jax.value_and_grad(lambda a: loss(a, impl), has_aux=True))(args)
    return results | grads


def truth(args, loss=loss):
    with jax.enable_x64():
        got = pulled(args, "recurrent", jnp.float64, loss)
        return {name: np.asarray(x) for name, x in got.items()}


close = functools.partial(helpers.close, tolerance=1e-5)

# ------------------------------------------------------------------------------------ equality


@pytest.mark.parametrize("delta", sample([True], [False]))
@pytest.mark.parametrize("decay", sample(["token"], DECAYS))
def test_results_and_all_gradients_are_those_of_the_recurrence(decay, delta):
    args = inputs(T=37, decay=decay, delta=delta)
    close(pulled(args, Triton(chunk=32, interpret=True), jnp.float32), truth(args))


SHAPES = {
    "one token": {"T": 1, "H": 1, "D": 2},
    "less than a chunk, two tiles of keys and values": {"T": 9, "N": 1, "H": 40, "D": 35},
    "as many keys as queries": {"T": 5, "K": 2, "H": 3, "D": 18},
}


@pytest.mark.parametrize("shape", sample(["one token"], SHAPES))
@pytest.mark.parametrize("gates", sample([("channel", True)], [("token", False)]))
def test_any_shape(shape, gates):
    decay, delta = gates
    args = inputs(**SHAPES[shape], decay=decay, delta=delta, seed=1)
    close(pulled(args, KERNELS, jnp.float32), truth(args))


@pytest.mark.interpreter
def test_the_mass_is_one_more_value():
    args = inputs(T=19, decay="token")
    args["q"], args["k"] = np.abs(args["q"]), np.abs(args["k"])
    start = args.pop("start")

    def normalized(args, impl):
        args = dict(args)
        state = State(args.pop("memory"), args.pop("denominator"))
        out, last = linear_attend(
            **args, state=state, return_state=True, normalize=normalizers.divide, impl=impl
        )
        value = jnp.sum(jnp.sin(out)) + jnp.sum(jnp.cos(last.memory)) + jnp.sum(last.denominator**2)
        return value, {"out": out, "last": last.memory, "last denominator": last.denominator}

    args |= {"memory": start, "denominator": np.abs(start[..., 0])}
    close(pulled(args, KERNELS, jnp.float32, normalized), truth(args, normalized))


# ------------------------------------------------------------------------------------ numerics


def naive(args, impl):
    """The formula with every intermediate in the inputs' dtype."""
    heads = args["q"].shape[2] // args["k"].shape[2]
    k, v = (jnp.repeat(args[x], heads, axis=2) for x in "kv")
    decay = jnp.exp(args["log_decay"])
    decay = decay if decay.ndim == 4 else decay[..., None]

    def step(S, token):
        q, k, v, decay, beta = token
        S = decay[..., None] * S
        v = beta * (v - jnp.einsum("BNH,BNHD->BND", k, S))
        S = S + k[..., None] * v[..., None, :]
        return S, jnp.einsum("BNH,BNHD->BND", q, S)

    tokens = (args["q"], k, v, decay, args["beta"][..., None])
    tokens = jax.tree.map(lambda x: x.swapaxes(0, 1), tokens)
    last, out = jax.lax.scan(step, args["start"], tokens)
    out, last = out.swapaxes(0, 1).astype(jnp.float32), last.astype(jnp.float32)
    return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.cos(last)), {"out": out, "last": last}


def errs_at_most_twice_as_much(args, dtype, impl):
    """As the formula with everything in `dtype`, against the recurrence in float64."""
    args = {name: np.asarray(jnp.asarray(x, dtype), np.float64) for name, x in args.items()}
    want, rough = truth(args), pulled(args, None, dtype, naive)
    mixed = {n: jnp.asarray(x, dtype if n in "qkv" else jnp.float32) for n, x in args.items()}
    run = jax.jit(jax.value_and_grad(lambda a: loss(a, impl), has_aux=True))
    (_, results), grads = run(mixed)
    for name, x in (results | grads).items():
        error, allowed = (
            np.sqrt(np.mean((np.asarray(y, np.float64) - want[name]) ** 2))
            for y in (x, rough[name])
        )
        assert error <= 2 * allowed, (name, error, allowed)
    assert results["last"].dtype == jnp.float32
    assert {n: x.dtype for n, x in grads.items()} == {n: x.dtype for n, x in mixed.items()}


@pytest.mark.interpreter
@pytest.mark.parametrize("decay, dtype", [("token", jnp.float16), ("channel", jnp.bfloat16)])
def test_half_precision_errs_at_most_twice_as_much_as_the_formula_in_it(decay, dtype):
    args = inputs(T=20, N=1, H=16, D=8, decay=decay, delta=True, seed=2)
    args["log_decay"] *= 0.3
    errs_at_most_twice_as_much(args, dtype, KERNELS)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 100, 128])
@pytest.mark.parametrize("decay", ["token", "channel"])
def test_on_a_gpu_half_precision_errs_at_most_twice_as_much(decay, width):
    args = inputs(T=1000, N=4, K=2, H=width, D=width, decay=decay, delta=True, seed=2)
    args = {name: x * (0.1 if name in "qk" else 1.0) for name, x in args.items()}
    args["log_decay"] *= 0.3
    errs_at_most_twice_as_much(args, jnp.bfloat16, Triton())


@pytest.mark.parametrize("decay", sample(["token"], ["channel"]))
def test_strong_decays_neither_overflow_nor_lose_what_they_keep(decay):
    args = inputs(T=32, N=1, decay=decay, delta=True, seed=3)
    pick = np.random.default_rng(0).random(args["log_decay"].shape)
    args["log_decay"] = np.select(
        [pick < 0.2, pick < 0.4, pick < 0.5], [-30.0, -87.0, -np.inf], -0.01
    )
    close(pulled(args, Triton(chunk=32, interpret=True), jnp.float32), truth(args))


@pytest.mark.parametrize("where", sample(["k"], ["q", "v", "log_decay", "beta"]))
def test_a_nan_reaches_the_queries_that_read_after_it_and_no_other(where):
    args = inputs(B=2, T=20, N=1, decay="token", delta=True)
    args = {name: jnp.asarray(x, jnp.float32) for name, x in args.items()}
    args[where] = args[where].at[0, 5].set(jnp.nan)

    def early(args):
        _, got = loss(args, KERNELS)
        return jnp.sum(got["out"][:, :5] ** 2), got

    grads, got = jax.jit(jax.grad(early, has_aux=True))(args)
    spoiled = np.isnan(np.asarray(got["out"])).any((2, 3))
    expected = np.arange(20) == 5 if where == "q" else np.arange(20) >= 5
    assert (spoiled[0] == expected).all() and not spoiled[1].any()
    assert np.isnan(got["last"][0]).any() == (where != "q")
    assert not np.isnan(got["last"][1]).any()
    assert all(np.isfinite(g[:, :5]).all() for n, g in grads.items() if n != "start")
    assert np.isfinite(grads["start"]).all()


@pytest.mark.interpreter
def test_an_infinite_value_leaves_earlier_tokens_alone():
    """Without the delta rule it is the kernels that read it."""
    args = {n: np.float32(x) for n, x in inputs(T=20, decay="channel").items()}
    run = jax.jit(lambda args: loss(args, KERNELS)[1]["out"])
    clean = np.asarray(run(args))
    for where in "kv":
        bad = dict(args) | {where: args[where].copy()}
        bad[where][0, 5, 0, 0] = np.inf
        out = np.asarray(run(bad))
        np.testing.assert_array_equal(out[:, :5], clean[:, :5])
        assert np.isnan(out[:, 5:]).all()


def test_results_are_bit_equal_from_run_to_run():
    args = inputs(T=20, N=1)
    first, second = (pulled(args, KERNELS, jnp.float32) for _ in range(2))
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name])


# ------------------------------------------------------------------------------ transformations


@pytest.mark.interpreter
def test_vmap_folds_the_mapped_axis_into_the_batch():
    args = inputs(B=2, T=3, decay="token", delta=True)
    args["q"] = np.stack([args["q"], 2 * args["q"], -args["q"]], axis=1)
    axes = {name: 1 if name == "q" else None for name in args}

    def mapped(args, impl, dtype):
        args = {name: jnp.asarray(x, dtype) for name, x in args.items()}
        one = lambda a: jax.grad(loss, has_aux=True)(a, impl)
        grads, results = jax.jit(jax.vmap(one, in_axes=(axes,)))(args)
        return results | grads

    with launch.programs() as seen:
        got = mapped(args, KERNELS, jnp.float32)
    with jax.enable_x64():
        want = {n: np.asarray(x) for n, x in mapped(args, "recurrent", jnp.float64).items()}
    close(got, want)
    # 3 x B x N heads in one launch
    assert any(p.name == "scores" and p.grid == (3 * 2 * 2,) for p in seen)


@pytest.mark.interpreter
def test_a_vmap_of_a_vmap():
    args = {n: jnp.asarray(x, jnp.float32) for n, x in inputs(T=3, decay="token").items()}
    q = jnp.stack([args["q"], 2 * args["q"]])
    rest = {"k": args["k"], "v": args["v"], "log_decay": args["log_decay"]}
    run = lambda q, v, impl: linear_attend(q, **(rest | {"v": v}), impl=impl)
    v = jnp.stack([args["v"], -args["v"], 3 * args["v"]])

    def both(impl):
        inner = jax.vmap(functools.partial(run, impl=impl), in_axes=(None, 0))
        return jax.vmap(inner, in_axes=(0, None))(q, v)

    got = both(KERNELS)
    assert got.shape[:2] == (2, 3)
    np.testing.assert_allclose(got, both("recurrent"), atol=1e-5)


@pytest.mark.parametrize("decay", sample(["head"], ["channel"]))
def test_inside_shard_map(decay, fresh_programs):
    """Sequences over two devices; what is replicated gets the gradient of both."""
    args = inputs(B=2, T=3, decay="channel", delta=decay == "head")
    if decay == "head":
        args["log_decay"] = args["log_decay"][0, 0, :, 0]
    want = truth(args)
    mesh = jax.make_mesh((2,), ("x",), (AxisType.Auto,), devices=jax.devices()[:2])
    specs = {n: P() if n == "log_decay" and decay == "head" else P("x") for n in args}

    def sharded(args, impl):
        def local(args):
            value, got = loss(args, impl)
            return jax.lax.psum(value, "x"), got

        return jax.shard_map(
            local, mesh=mesh, in_specs=(specs,), out_specs=(P(), {"out": P("x"), "last": P("x")})
        )(args)

    close(pulled(args, KERNELS, jnp.float32, sharded), want)


# ------------------------------------------------------------------------------------- messages

REASONS = {
    "float64": ({"dtype": jnp.float64}, {}, "states of dtype float64: only float32"),
    "wide": ({"H": 257}, {}, "H = 257, D = 3: only up to 256"),
    "normalized": (
        {"D": 256},
        {"normalize": normalizers.divide},
        "D = 257 with the denominator: only up to",
    ),
    "both directions": ({}, {"block": None}, "block None: only 1"),
    "blocks": ({}, {"block": 2}, "block 2: only 1"),
    "no GPU": ({}, {"impl": Triton()}, "needs a GPU, this process runs on cpu"),
}


@pytest.mark.parametrize("shape, options, reason", REASONS.values(), ids=REASONS)
def test_what_the_kernels_do_not_run_is_told(shape, options, reason):
    shape = dict(shape)
    dtype = shape.pop("dtype", jnp.float32)
    with jax.enable_x64():
        args = {n: jnp.asarray(x, dtype) for n, x in inputs(T=4, **shape).items() if n in "qkv"}
        with pytest.raises(ValueError, match=f"Triton.* does not run this call: .*{reason}"):
            linear_attend(**args, **({"impl": KERNELS} | options))


def test_a_chunk_is_a_power_of_two():
    for chunk in (8, 48):
        with pytest.raises(ValueError, match=f"chunk is {chunk}, expected a power of two from 16"):
            Triton(chunk=chunk)


# -------------------------------------------------------------------------------- on a real GPU


def programs_of(width, decay, delta, dtype=jnp.bfloat16):
    """Every program of a call and its gradient, once."""
    given = inputs(T=256, K=2, H=width, D=width, decay=decay, delta=delta)
    args = {
        n: jax.ShapeDtypeStruct(x.shape, dtype if n in "qkv" else jnp.float32)
        for n, x in given.items()
    }
    run = jax.grad(lambda a: loss(a, Triton(interpret=True))[0])
    with launch.programs() as seen:
        jax.eval_shape(run, args)
    return list({p.text: p for p in seen}.values())


def compiles(capability, programs):
    for program in programs:
        used = launch.usage(program, capability)
        assert used.spilled == 0, (program.name, used.registers, used.spilled)
        products = "wgmma" in used.ptx or "mma.sync" in used.ptx
        assert products or program.name == "inverse", program.name
        assert not re.search(r"\b(atom|red)\.", used.ptx), program.name
        limit = {80: 163 * 1024, 90: 227 * 1024}[capability]
        assert used.shared <= limit, (program.name, used.shared)


@pytest.mark.interpreter
@pytest.mark.parametrize(
    "capability, width, decay, delta",
    [(80, 64, "token", True), (90, 128, "channel", True)],
)
def test_kernels_compile_without_spills(capability, width, decay, delta):
    compiles(capability, programs_of(width, decay, delta))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("decay", DECAYS)
def test_every_kernel_compiles_without_spills(capability, decay):
    for width in (64, 128):
        for delta in (False, True):
            compiles(capability, programs_of(width, decay, delta))
