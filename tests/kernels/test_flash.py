"""The flash kernels: by Triton's interpreter against the dense form, compiled without a GPU, and,
marked `gpu`, on a card at real sizes."""

import functools
import itertools
from dataclasses import dataclass, replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from attnjax.core import masks, mods, normalizers
from attnjax.core.blocks.select import own_block, top_k
from attnjax.core.pairwise.attend import attend, attend_state, join_states
from attnjax.core.pairwise.triton import Triton
from attnjax.kernels import launch
from attnjax.kernels.flash import lists
from attnjax.kernels.flash.triton import deal
from tests.helpers import sample

pytest.importorskip("triton")

IMPL = Triton(block_q=16, block_k=16, interpret=True)
B, T, N, K, H, D = 2, 21, 4, 2, 8, 12
RNG = np.random.default_rng(0)
IDS = np.sort(RNG.integers(0, 3, (B, T)))
ALLOWED = RNG.random((B, 1, T, T)) > 0.5
LAYOUT = RNG.random((N, 7, 6)) > 0.5
ORDER = RNG.permutation(T).astype(np.int32)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def qkv(T=T, S=None, N=N, K=K, H=H, D=D, B=B):
    S = T if S is None else S
    return normal(B, T, N, H), normal(B, S, K, H, seed=1), normal(B, S, K, D, seed=2)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(fn, args):
    """As one program; the cotangent depends on its shape only."""
    out, pull = jax.vjp(fn, *args)
    return out, *pull(jnp.asarray(normal(*out.shape, seed=3), out.dtype))


def same(fn, *args, tolerance=2e-5, impl=IMPL):
    """fn(impl, *args) equals its dense form in float64, in value and in every gradient."""
    with jax.enable_x64():
        exact = [jnp.asarray(x, jnp.float64) for x in args]
        want = jax.tree.map(np.asarray, value_and_gradients(functools.partial(fn, "dense"), exact))
    given = [jnp.asarray(x, jnp.float32) for x in args]
    got = value_and_gradients(functools.partial(fn, impl), given)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1, np.abs(y).max()))


# name -> (options of attend as a function of differentiated operands, these)
CASES = {
    "full": (lambda: {}, ()),
    "causal": (lambda: {"mask": masks.causal}, ()),
    "entmax of heads": (
        lambda a: {"normalizer": normalizers.entmax(1.5 + 0.3 * jnp.tanh(a))},
        (normal(N),),
    ),
    "scale": (lambda s: {"scale": s}, (normal() * 0.3,)),
    "alibi": (lambda s: {"mods": (mods.alibi(s),), "mask": masks.causal}, (normal(N),)),
    "soft cap": (lambda s: {"mods": (mods.soft_cap(s),)}, (np.array(2.0),)),
    "forget": (
        lambda f: {"mods": (mods.forget(f),), "mask": masks.causal},
        (-abs(normal(B, T, N)),),
    ),
    "pair, then cap": (
        lambda b: {"mods": (mods.pair_bias(b), mods.soft_cap(3.0)), "mask": masks.causal},
        (normal(B, 1, T, T),),
    ),
    "pair of heads": (lambda b: {"mods": (mods.pair_bias(b),)}, (normal(1, N, T, T),)),
    "pair of keys": (lambda b: {"mods": (mods.pair_bias(b),)}, (normal(1, N, 1, T),)),
    "table": (lambda t: {"mods": (mods.relative_bias(t),)}, (normal(N, 11),)),
    "query table": (lambda t: {"mods": (mods.query_relative(t),)}, (normal(B, T, N, 11),)),
    "key table": (lambda t: {"mods": (mods.key_relative(t),)}, (normal(B, T, K, 7),)),
    "softmax_sink": (lambda s: {"normalizer": normalizers.softmax_sink(s)}, (normal(N),)),
    "softpick": (lambda: {"normalizer": normalizers.softpick()}, ()),
    "sigmoid": (lambda s: {"normalizer": normalizers.sigmoid(s)}, (normal(N),)),
    "relu": (lambda: {"normalizer": normalizers.relu(2)}, ()),
    "signed": (lambda: {"normalizer": normalizers.signed}, ()),
    "taylor": (lambda: {"normalizer": normalizers.taylor(2)}, ()),
    "hard": (lambda: {"normalizer": normalizers.hard}, ()),
    "softplus": (lambda s: {"normalizer": normalizers.softplus(2, s)}, (np.array(0.2),)),
    "clipped": (
        lambda a, b: {"normalizer": normalizers.clipped_softmax(a, b)},
        (np.array(-0.1), np.array(1.1)),
    ),
    "sparsemax": (lambda: {"normalizer": normalizers.sparsemax}, ()),
    "window": (lambda: {"mask": masks.window(5)}, ()),
    "documents": (lambda: {"mask": masks.document(IDS) & masks.causal}, ()),
    "lengths": (lambda: {"mask": masks.lengths(None, np.array([3, 17]))}, ()),
    "array": (lambda: {"mask": masks.array(ALLOWED)}, ()),
    "layout": (lambda: {"mask": masks.block_layout(LAYOUT, 3, 4)}, ()),
    "not, or": (lambda: {"mask": ~masks.window(3) | masks.sinks(2)}, ()),
    "neighborhood": (lambda: {"mask": masks.neighborhood((3, 7), (3, 3))}, ()),
    "positions": (
        lambda s: {"mods": (mods.alibi(s),), "mask": masks.causal, "q_positions": ORDER},
        (normal(N),),
    ),
}


@pytest.mark.parametrize(
    "name", sample(("alibi", "softmax_sink", "window", "documents", "table"), CASES)
)
def test_equals_dense_in_value_and_gradient(name):
    options, operands = CASES[name]
    # softpick divides by a small difference of large sums
    tolerance = 2e-4 if name == "softpick" else 2e-5
    run = lambda impl, q, k, v, *rest: attend(q, k, v, impl=impl, **options(*rest))
    same(run, *qkv(), *operands, tolerance=tolerance)


HIDDEN = {
    "taylor": normalizers.taylor(2),
    "signed": normalizers.signed,
    "softpick": normalizers.softpick(),
    "softplus": normalizers.softplus(2),
    "entmax": normalizers.entmax(1.5),
}


@pytest.mark.parametrize("name", sample(["taylor", "softplus"], HIDDEN))
def test_scores_of_minus_infinity_are_masked_under_every_normalizer(name):
    def run(impl, q, k, v, bias):
        hidden = mods.pair_bias(jnp.where(ALLOWED, bias, -jnp.inf))
        return attend(q, k, v, mods=(hidden,), normalizer=HIDDEN[name], impl=impl)

    same(run, *qkv(), normal(B, 1, T, T), tolerance=2e-4 if name == "softpick" else 2e-5)


def _reaches(q_position, k_position, reach):
    return q_position - k_position <= reach


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class Reach(masks.Mask):
    """A mask that the library does not know: key k is seen up to reach[b, k] queries later."""

    reach: jax.Array  # (B, S)

    def allowed(self, q_pos, k_pos):
        return q_pos - k_pos <= jnp.asarray(self.reach)[:, None, None, k_pos[0]]

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        return np.full((q_lo.shape[0], k_lo.shape[1]), masks.PARTIAL, np.int8)


class ReachInKernels(Reach):
    def as_function(self, q_positions, k_positions, heads):
        reach = masks.MaskOperand(jnp.asarray(self.reach, jnp.int32)[:, None, None, :])
        return masks.MaskFunction(_reaches, (reach,))


jax.tree_util.register_dataclass(ReachInKernels, data_fields=["reach"], meta_fields=[])
REACHES = RNG.integers(-2, 9, (B, T))


@pytest.mark.parametrize("combine", sample([lambda m: masks.causal & ~m], [lambda m: m]))
def test_a_new_mask_says_what_a_kernel_reads(combine):
    mask = combine(ReachInKernels(REACHES))
    same(lambda impl, q, k, v: attend(q, k, v, mask=mask, impl=impl), *qkv())


def test_a_mask_whose_arrays_are_no_operands_is_refused():
    q, k, v = (jnp.asarray(x, jnp.float32) for x in qkv())
    for mask in (Reach(REACHES), masks.causal & ~Reach(REACHES)):
        with pytest.raises(ValueError, match="does not define as_function"):
            attend(q, k, v, mask=mask, impl=IMPL)


@pytest.mark.parametrize(
    "sizes", sample([(17, 40, 3, 1, 20, 7)], [(1, 1, 4, 4, 16, 16), (40, 9, 2, 2, 7, 33)])
)
def test_any_lengths_heads_and_widths(sizes):
    T, S, N, K, H, D = sizes
    run = lambda impl, q, k, v: attend(q, k, v, mask=masks.causal_to_end, impl=impl)
    same(run, *qkv(T, S, N, K, H, D))


@pytest.mark.parametrize("blocks", sample([(K, 16, 16)], [(1, 4, 8), (N, 20, 24)]))
@pytest.mark.parametrize("mask", sample([masks.causal], [masks.everything]))
def test_selected_blocks(blocks, mask):
    heads, block_q, block_k = blocks
    scores = normal(B, -(-T // block_q), heads, -(-T // block_k))
    chosen = top_k(scores, min(2, -(-T // block_k)), block_q=block_q, block_k=block_k)
    some = np.random.default_rng(0).random(chosen.valid.shape) < 0.7
    chosen = replace(chosen, valid=chosen.valid & some)
    run = lambda impl, q, k, v: attend(q, k, v, blocks=chosen, mask=mask, impl=impl)
    same(run, *qkv())


def test_states_of_parts_of_the_keys_join():
    def run(impl, q, k, v):
        parts = (slice(0, 9), slice(9, None))
        return join_states(*(attend_state(q, k[:, s], v[:, s], impl=impl) for s in parts))

    same(run, *qkv())


@pytest.mark.interpreter
def test_vmap_makes_more_examples():
    stacked = lambda x: jnp.stack([x, 0.5 * x])

    def run(impl, q, k, v, bias):
        one = lambda q, bias: attend(q, k, v, mods=(mods.pair_bias(bias),), impl=impl)
        return jax.vmap(one)(stacked(q), stacked(bias))

    same(run, *qkv(), normal(1, N, T, T))


@pytest.mark.interpreter
def test_inside_shard_map(fresh_programs):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def run(impl, q, k, v):
        if impl == "dense":
            return attend(q, k, v, mask=masks.causal, impl=impl)
        one = lambda q, k, v: attend(q, k, v, mask=masks.causal, impl=impl)
        return jax.shard_map(one, mesh=mesh, in_specs=P("data"), out_specs=P("data"))(q, k, v)

    same(run, *qkv())


def test_jit_compiles_once_and_twice_is_bit_equal():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(q, k, v):
        return jax.grad(lambda q: attend(q, k, v, mask=masks.causal, impl=IMPL).sum())(q)

    given = [jnp.asarray(x, jnp.float32) for x in qkv()]
    np.testing.assert_array_equal(run(*given), run(*given))


def test_rows_with_nothing_allowed_are_zero_and_nan_reaches_who_sees_it():
    q, k, v = (jnp.asarray(x, jnp.float32) for x in qkv())
    k, v = k.at[0, 15, 1, 2].set(jnp.inf), v.at[1, 7, 0, 2].set(jnp.nan)
    mask = masks.causal & masks.window(5) & ~masks.sinks(2)
    for n in (normalizers.softmax, normalizers.sigmoid(), normalizers.hard, normalizers.sparsemax):
        got, want = (
            jax.jit(functools.partial(attend, mask=mask, normalizer=n, impl=i))(q, k, v)
            for i in (IMPL, "dense")
        )
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        assert np.isnan(got).any() and not np.isnan(got).all()
        np.testing.assert_array_equal(got[:, :2], 0)


@pytest.mark.interpreter
def test_bfloat16_error_is_at_most_twice_that_of_the_naive_formula():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in qkv(H=16, D=16))
    loss = lambda impl: lambda q, k, v: attend(q, k, v, mask=masks.causal, impl=impl)
    step = jnp.asarray(normal(B, T, N, 16), jnp.bfloat16)

    def naive(q, k, v):
        k, v = (jnp.repeat(x, N // K, 2) for x in (k, v))
        s = jnp.where(jnp.tri(T, dtype=bool), jnp.einsum("BTNH,BSNH->BNTS", q, k) / 4, -jnp.inf)
        return jnp.einsum("BNTS,BSND->BTND", jax.nn.softmax(s, axis=-1), v)

    with jax.enable_x64():
        exact = [x.astype(jnp.float64) for x in (q, k, v)]
        want, pull = jax.vjp(loss("dense"), *exact)
        want = [np.asarray(x) for x in (want, *pull(step.astype(jnp.float64)))]
    errors = []
    for fn in (loss(IMPL), naive):
        out, pull = jax.vjp(fn, q, k, v)
        got = [np.asarray(x, np.float64) for x in (out, *pull(step))]
        errors.append([np.abs(a - b).max() for a, b in zip(got, want, strict=True)])
    for mine, theirs in zip(*errors, strict=True):
        assert mine <= 2 * theirs


# --------------------------------------------------------------------------- keys that are split


@pytest.mark.parametrize("counts", [[5, 0, 7, 1], [0, 0], [3], [1] * 9, [0, 40, 0]])
@pytest.mark.parametrize("programs", [1, 4, 7])
def test_tiles_are_dealt_evenly_and_each_once(counts, programs):
    got = jax.tree.map(np.asarray, deal(jnp.asarray(counts), programs))
    shares = np.diff(got.starts)
    total, busy = sum(counts), min(programs, max(1, sum(counts)))
    assert set(shares[:busy]) <= {total // busy, -(-total // busy)} and not shares[busy:].any()
    owner = np.repeat(np.arange(programs), shares)  # of each tile in the line
    head = np.repeat(np.arange(len(counts)), counts)
    for p in range(busy if total else 0):
        assert got.heads[p] == head[owner == p][0]
    for s in range(len(counts)):
        assert list(range(got.first[s], got.last[s])) == sorted(set(owner[head == s]))


SPLIT = {
    "full": {},
    "last queries": {"mask": masks.causal_to_end},
    "ragged, one empty": {"mask": masks.lengths(None, np.array([0, 40]))},
    "sink": {"normalizer": normalizers.softmax_sink(jnp.ones(6)), "mask": masks.window(9)},
    "sigmoid": {"normalizer": normalizers.sigmoid(), "mods": (mods.alibi(jnp.ones(6)),)},
}


@pytest.mark.parametrize("name", sample(["sink"], SPLIT))
@pytest.mark.parametrize("heads", sample([2], [6]))
def test_few_queries_split_the_keys(name, heads):
    run = lambda impl, q, k, v: attend(q, k, v, impl=impl, **SPLIT[name])
    sizes = qkv(3, 70, N=6, K=heads)
    with launch.programs() as seen:
        same(run, *sizes)
    assert {p.name for p in seen} >= {"split", "combine"}


@pytest.mark.interpreter
def test_the_number_of_programs_does_not_matter(monkeypatch):
    q, k, v = (jnp.asarray(x, jnp.float32) for x in qkv(2, 130))
    want = attend(q, k, v, impl="dense")
    for programs, size in itertools.product((1, 3, 11), (16, 64)):
        monkeypatch.setattr("attnjax.core.pairwise.fused._programs", lambda *_, p=programs: p)
        jax.clear_caches()  # a call that has been traced before is not traced again
        got = attend(q, k, v, impl=Triton(block_k=size, interpret=True))
        np.testing.assert_allclose(got, want, atol=1e-5)


# ------------------------------------------------------------------------------ lists of tiles


def named(of, block):
    """The columns that each row of one example's list visits, as (FULL, PARTIAL) sets."""
    bounds, entries = (np.asarray(x) for x in of)
    rows = []
    for first, middle, last in bounds[0, 0]:
        full, some = entries[0, first:middle] // block, entries[0, middle:last] // block
        assert len(set(full) | set(some)) == last - first
        rows.append((set(full.tolist()), set(some.tolist())))
    return rows


@pytest.mark.parametrize("traced", [False, True])
def test_lists_name_the_tiles_of_the_mask(traced):
    mask = masks.causal & masks.window(40) | masks.sinks(3)
    kinds = masks.tile_kinds_of_each(mask, 100, 100, 16, 8, None, None)
    want = [
        tuple({j for j, x in enumerate(row) if x == kind} for kind in (2, 1)) for row in kinds[0, 0]
    ]
    got = lists.of_kinds(jnp.asarray(kinds) if traced else kinds, 8)
    assert named(got, 8) == want
    if not traced:
        assert got.entries.shape[1] == (kinds != 0).sum()  # EMPTY tiles take no room


def test_lists_of_a_selection_are_each_others_transpose():
    indices = np.stack([np.random.default_rng(i).permutation(5)[:3] for i in range(7)])
    valid = np.random.default_rng(9).random((7, 3)) < 0.7
    given = (jnp.asarray(x)[None, None] for x in (indices, valid))
    given = tuple(given)
    rows = named(lists.of_selection(*given, 32, 16, lists.FULL), 16)
    columns = named(lists.of_selected(*given, 5, 8, 8, lists.PARTIAL), 8)
    pairs = {(u, j) for u in range(7) for j in indices[u][valid[u]].tolist()}
    assert {(u, j // 2) for u, (full, _) in enumerate(rows) for j in full} == pairs
    assert {(u, j) for j, (_, some) in enumerate(columns) for u in some} == pairs


# ---------------------------------------------------------------------- what it takes of a GPU


def launched(monkeypatch, fn, *shapes, capability=90):
    """The programs that fn would launch on a GPU."""
    monkeypatch.setattr(launch, "missing", lambda: None)
    monkeypatch.setattr(launch, "capability", lambda: capability)
    monkeypatch.setattr(
        launch, "_on_gpu", lambda p, _: [jnp.zeros(x.shape, x.dtype) for x in p.outputs]
    )
    with launch.programs() as seen:
        jax.eval_shape(fn, *shapes)
    return seen


def both_ways(**options):
    def run(q, k, v):
        out, pull = jax.vjp(lambda *x: attend(*x, impl="triton", **options), q, k, v)
        return pull(out)

    return run


def shaped(T, N, K, H, dtype):
    shape = lambda heads: jax.ShapeDtypeStruct((1, T, heads, H), dtype)
    return shape(N), shape(K), shape(K)


@pytest.mark.parametrize("capability", sample([90], [80]))
@pytest.mark.parametrize("H", sample([128], [64, 256]))
@pytest.mark.parametrize("dtype", sample([jnp.bfloat16], [jnp.float32]))
def test_default_tiles_spill_no_registers(monkeypatch, capability, H, dtype):
    run = both_ways(mask=masks.causal)
    programs = launched(monkeypatch, run, *shaped(1024, 2, 2, H, dtype), capability=capability)
    assert [p.name for p in programs] == ["forward", "rows", "columns"]
    for program in programs:
        used = launch.usage(program, capability)
        assert used.spilled == 0, program.name
        assert used.registers <= 255
        assert used.shared <= {80: 163 << 10, 90: 227 << 10}[capability]
        if dtype == jnp.bfloat16:
            assert "wgmma.mma" in used.ptx if capability == 90 and H < 256 else "mma" in used.ptx


@pytest.mark.parametrize("H", sample([128], [64]))
def test_decoding_spills_no_registers(monkeypatch, H):
    run = lambda q, k, v: attend(q, k, v, impl="triton")
    q, _, _ = shaped(1, 32, 8, H, jnp.bfloat16)
    _, k, v = shaped(4096, 32, 8, H, jnp.bfloat16)
    programs = launched(monkeypatch, run, q, k, v)
    assert [p.name for p in programs] == ["split", "combine"]
    for program, capability in itertools.product(programs, (80, 90)):
        used = launch.usage(program, capability)
        assert used.spilled == 0 and used.shared <= 163 << 10


@pytest.mark.interpreter
@pytest.mark.parametrize(
    "options",
    [
        {
            "normalizer": normalizers.softplus(2, 0.2),
            "mask": masks.document(np.zeros((1, 256), int)),
        },
        {
            "normalizer": normalizers.softpick(),
            "mods": (mods.alibi(np.ones(2)), mods.soft_cap(9.0)),
        },
        {"mods": (mods.relative_bias(np.ones((2, 9))), mods.pair_bias(np.ones((1, 1, 256, 256))))},
        {"normalizer": normalizers.sparsemax, "mask": masks.neighborhood((16, 16), (3, 3))},
    ],
    ids=["two passes", "one pass", "tables and pairs", "sparsemax"],
)
def test_what_is_generated_compiles(monkeypatch, options):
    programs = launched(monkeypatch, both_ways(**options), *shaped(256, 2, 2, 64, jnp.bfloat16))
    for program in dict.fromkeys(programs):
        assert launch.usage(program, 90).registers > 0


def test_a_pair_operand_beyond_32_bits_is_addressed_by_64(monkeypatch):
    run = lambda q, k, v, bias: attend(q, k, v, mods=(mods.pair_bias(bias),), impl="triton")
    bias = jax.ShapeDtypeStruct((2, 2, 32768, 32768), jnp.float32)
    q = jax.ShapeDtypeStruct((2, 32768, 2, 64), jnp.bfloat16)
    (program,) = launched(monkeypatch, run, q, q, q, bias)
    assert "at[1].to(tl.int64) * 1073741824" in program.text
    assert launch.usage(program, 90).spilled == 0


def test_without_a_gpu_it_says_so():
    q, k, v = (jnp.asarray(x, jnp.float32) for x in qkv())
    with pytest.raises(ValueError, match="needs a GPU, this process runs on cpu"):
        attend(q, k, v, impl="triton")


REASONS = {
    "float64": (lambda q, k, v: attend(*(x.astype(jnp.float64) for x in (q, k, v)), impl=IMPL)),
    "only 1 to 256": lambda q, k, v: attend(*(jnp.pad(x, [(0, 0)] * 3 + [(0, 300)]) for x in (q, k, v)), impl=IMPL),  # noqa: E501
    "test_flash.py": lambda q, k, v: attend(q, k, v, mods=(mods.mod(_unknown),), impl=IMPL),
    "pairs under a selection": lambda q, k, v: attend(
        q, k, v, blocks=own_block(B, 2, block_q=16, block_k=16),
        mods=(mods.pair_bias(jnp.ones((T, T))),), impl=IMPL,
    ),
}  # fmt: skip


def _unknown(score):
    return jax.lax.digamma(score)  # elementwise, and no word of Triton's


@pytest.mark.parametrize("reason", REASONS)
def test_what_it_cannot_do_it_names(reason):
    with jax.enable_x64(), pytest.raises(ValueError, match=reason):
        REASONS[reason](*(jnp.asarray(x, jnp.float32) for x in qkv()))


def test_tiles_are_powers_of_two():
    with pytest.raises(ValueError, match="block_q is 24, expected a power of two"):
        Triton(block_q=24)


# ---------------------------------------------------------------------------------- on a card

REAL = {
    **{name: CASES[name][0]() for name in ("full", "causal", "window", "softpick", "signed")},
    "sigmoid": {"normalizer": normalizers.sigmoid(-6.0)},
    "softmax_sink": {"normalizer": normalizers.softmax_sink(jnp.ones(8)), "mask": masks.causal},
    "softplus": {"normalizer": normalizers.softplus(2, 0.2), "mask": masks.causal},
    "alibi, cap": {
        "mods": (mods.alibi(mods.alibi_slopes(8)), mods.soft_cap(20.0)), "mask": masks.causal,
    },
    "bias": {"mods": (mods.pair_bias(np.linspace(-1, 1, 8)[:, None, None]),)},
    "documents": {},  # as many as fit T
}  # fmt: skip


def errs_at_most_twice_as_much(name, dtype, T, H, impl, in_their_own_dtype):
    """As the dense form with everything in `dtype`, against the one in float64."""
    given = [jnp.asarray(x, dtype) for x in qkv(T, T, 8, 2, H, H)]
    step = normal(B, T, 8, H)
    options = {**REAL[name]}
    if name == "documents":
        options["mask"] = masks.document(np.arange(T) * 10 // 3 // T) & masks.causal

    @functools.partial(jax.jit, static_argnums=0)
    def both(impl, given):
        out, pull = jax.vjp(lambda *x: attend(*x, impl=impl, **options), *given)
        return out, *pull(jnp.asarray(step, out.dtype))

    def pulled(impl, given):
        return [np.asarray(x, np.float64) for x in both(impl, given)]

    with jax.enable_x64():
        want = pulled("dense", [x.astype(jnp.float64) for x in given])
    mine = pulled(impl, given)
    in_their_own_dtype()
    for got, naive, x in zip(mine, pulled("dense", given), want, strict=True):
        assert np.abs(got - x).max() <= 2 * np.abs(naive - x).max()


@pytest.mark.parametrize("name", sample(["alibi, cap"], ["causal", "documents"]))
def test_the_error_is_at_most_twice_the_naive_formulas(name, in_their_own_dtype):
    errs_at_most_twice_as_much(name, jnp.bfloat16, 40, 16, IMPL, in_their_own_dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float16, jnp.float32], ids=lambda d: d.__name__
)
@pytest.mark.parametrize("H", [64, 128, 200])
@pytest.mark.parametrize("name", REAL)
def test_on_a_gpu_the_error_is_at_most_twice_the_naive_formulas(name, H, dtype, in_their_own_dtype):
    errs_at_most_twice_as_much(name, dtype, 1000, H, "triton", in_their_own_dtype)
