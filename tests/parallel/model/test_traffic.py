"""Bytes counted in compiled programs are those that paper and pencil give."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as Spec

from attnjax.parallel.model.traffic import Collective, collectives, sent

RING = [(i, (i + 1) % 8) for i in range(8)]
LOCAL = 4 * 16 * 4  # bytes of the (4, 16) float32 that each of 8 devices holds


@pytest.fixture(scope="module")
def line():
    return mesh((8,), ("sp",))


@pytest.fixture(scope="module")
def grid():
    return mesh((2, 4), ("a", "b"))


def mesh(shape, names):
    if len(jax.devices()) < 8:
        pytest.fail("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))


def compiled(f, mesh, out=None, dtype=jnp.float32):
    """The text of f on a (32, 16) array whose rows all devices share evenly."""
    rows = Spec(mesh.axis_names)
    out = rows if out is None else out
    mapped = jax.shard_map(f, mesh=mesh, in_specs=rows, out_specs=out, check_vma=False)
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct((32, 16), dtype)).compile().as_text()


def rotate(x):
    return lax.ppermute(x, "sp", RING)


def turns(n, body):
    """A loop of n turns whose carry is too entangled to be hoisted."""
    return lambda x: lax.scan(lambda c, _: (body(c) * 1.5 + 1, c.sum()), x, None, length=n)[0]


# ------------------------------------------------------------------------- one collective each


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (rotate, {"collective-permute": 256}),
        (lambda x: lax.all_gather(x, "sp", tiled=True).sum() + x, {"all-gather": 7 * 256}),
        (lambda x: jnp.sin(lax.all_gather(x, "sp")).sum(0), {"all-gather": 7 * 256}),
        (lambda x: lax.all_to_all(x, "sp", 1, 0, tiled=True).reshape(4, 16), {"all-to-all": 224}),
        (lambda x: lax.psum(x, "sp"), {"all-reduce": 448}),
        (
            lambda x: lax.psum_scatter(jnp.tile(x, (2, 1)), "sp", tiled=True),
            {"reduce-scatter": 448},
        ),
        (lambda x: x * 2, {}),
    ],
    ids=["permute", "gather", "gather_stacked", "all_to_all", "sum", "sum_scatter", "nothing"],
)
def test_one_collective_over_all_devices(line, f, expected):
    assert sent(compiled(f, line)) == expected


def test_a_sum_of_one_number_rounds_up(line):
    f = lambda x: x + lax.psum(x[0, 0], "sp")
    assert sent(compiled(f, line)) == {"all-reduce": 7}  # 2 * 7/8 of 4 bytes
    assert sent(compiled(f, line, dtype=jnp.int8)) == {"all-reduce": 2}  # of 1 byte


@pytest.mark.parametrize(
    ("dtype", "width"),
    [(jnp.int8, 1), (jnp.uint8, 1), (jnp.int16, 2), (jnp.int32, 4), (jnp.uint32, 4),
     (jnp.float32, 4), (jnp.complex64, 8)],
    ids=str,
)  # fmt: skip
def test_the_width_of_an_element_counts(line, dtype, width):
    assert sent(compiled(rotate, line, dtype=dtype)) == {"collective-permute": 64 * width}


def test_a_pair_that_stays_sends_nothing(line):
    swap = lambda x: lax.ppermute(x, "sp", [(0, 1), (1, 0), *((i, i) for i in range(2, 8))])
    stay = lambda x: lax.ppermute(x, "sp", [(i, i) for i in range(8)])
    assert sent(compiled(swap, line)) == {"collective-permute": LOCAL}
    assert sent(compiled(stay, line)) == {}
    text = compiled(swap, line)
    still = re.sub(r"source_target_pairs=\{\{.*?\}\}", "source_target_pairs={{0,0},{1,1}}", text)
    assert still != text and sent(still) == {}


def test_several_collectives_add_up_and_are_counted(line):
    def f(x):
        y = rotate(x) * 2 + lax.psum(x, "sp")
        return rotate(jnp.sin(y))

    assert collectives(compiled(f, line)) == (
        Collective("collective-permute", 2 * 256, 2),
        Collective("all-reduce", 448, 1),
    )


# ------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda x: lax.psum(x, "a"), {"all-reduce": 256}),  # 2 * 1/2
        (lambda x: lax.psum(x, "b"), {"all-reduce": 384}),  # 2 * 3/4
        (lambda x: lax.psum(x, ("a", "b")), {"all-reduce": 448}),  # 2 * 7/8
        (lambda x: lax.all_gather(x, "a", tiled=True).sum() + x, {"all-gather": 256}),
        (lambda x: lax.all_gather(x, "b", tiled=True).sum() + x, {"all-gather": 768}),
        (lambda x: lax.all_to_all(x, "a", 1, 0, tiled=True), {"all-to-all": 128}),
        (lambda x: lax.all_to_all(x, "b", 1, 0, tiled=True), {"all-to-all": 192}),
        (lambda x: lax.ppermute(x, "a", [(0, 1), (1, 0)]), {"collective-permute": 256}),
        (lambda x: lax.psum_scatter(x, "b", tiled=True), {"reduce-scatter": 192}),
    ],
)
def test_groups_along_one_axis_of_two(grid, f, expected):
    assert sent(compiled(f, grid)) == expected


GATHER = """HloModule m, num_partitions=8

ENTRY %main (x: f32[4,16]) -> f32[16,16] {{
  %x = f32[4,16]{{1,0}} parameter(0)
  ROOT %g = f32[16,16]{{1,0}} all-gather(%x), channel_id=1, replica_groups={}, dimensions={{0}}
}}
"""


@pytest.mark.parametrize(
    ("groups", "others"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 3),
        ("{{0,4},{1,5},{2,6},{3,7}}", 1),
        ("{{0},{1},{2},{3},{4,5,6,7}}", 3),  # the busiest device
        ("{}", 7),
        ("[2,4]<=[8]", 3),
        ("[4,2]<=[2,4]T(1,0)", 1),
        ("[1,8]<=[8]", 7),
        ("mesh['r'=2,'h'=4] {'h'}", 3),  # since JAX 0.12
        ("mesh['r'=2,'h'=4] {'r','h'}", 7),
    ],
)
def test_every_form_of_groups(groups, others):
    assert sent(GATHER.format(groups)).get("all-gather", 0) == others * LOCAL


def test_groups_of_one_device_send_nothing():
    assert sent(GATHER.format("[8,1]<=[8]")) == {}


def test_an_unknown_form_of_groups_is_an_error():
    with pytest.raises(ValueError, match=r"%?g has replica_groups=@mesh.*expected \{\{0,1\}"):
        sent(GATHER.format("@mesh<8>"))


# -------------------------------------------------------------------------------- control flow


def test_a_loop_counts_its_turns(line):
    assert collectives(compiled(turns(7, rotate), line)) == (
        Collective("collective-permute", 7 * 256, 7),
    )


def test_nested_loops_multiply(line):
    nested = turns(3, lambda x: turns(5, rotate)(x) + lax.psum(x, "sp"))
    assert collectives(compiled(nested, line)) == (
        Collective("collective-permute", 15 * 256, 15),
        Collective("all-reduce", 3 * 448, 3),
    )


def test_a_conditional_counts_its_branch_of_most_bytes(grid):
    ring = [(0, 1), (1, 2), (2, 3), (3, 0)]
    once = lambda x: lax.ppermute(x, "b", ring)
    often = lambda x: once(jnp.sin(once(x)))
    late = lambda: lax.axis_index("a") == 1
    for branches in ((once, lambda x: x * 2), (lambda x: x * 2, once)):
        text = compiled(lambda x, b=branches: lax.cond(late(), *b, x), grid)
        assert sent(text) == {"collective-permute": 256}
    text = compiled(lambda x: lax.cond(late(), once, often, x), grid)
    assert sent(text) == {"collective-permute": 512}
    assert "conditional(" in text
    three = lambda x: lax.switch(lax.axis_index("a"), [jnp.sin, often, once], x)
    assert sent(compiled(turns(4, three), grid)) == {"collective-permute": 4 * 512}


def test_a_gradient_sends_back(line):
    f = lambda x: jnp.sin(rotate(x)).sum()
    text = compiled(jax.grad(f), line)
    assert sent(text) == {"collective-permute": 2 * 256}


@pytest.mark.parametrize(
    ("first", "test", "step", "count"),
    [
        (0, lambda i: i < 5, 1, 5),
        (4, lambda i: i <= 10, 3, 3),  # 4, 7, 10
        (1, lambda i: i < 10, 4, 3),  # 1, 5, 9
        (9, lambda i: i < 9, 1, 0),
    ],
)
def test_turns_are_read_off_the_condition_where_xla_is_silent(line, first, test, step, count):
    def f(x):
        turn = lambda c: (c[0] + step, rotate(c[1]) + 1)
        return lax.while_loop(lambda c: test(c[0]), turn, (first, x))[1]

    text = compiled(f, line)
    silent = re.sub(r'"known_trip_count":\{"n":"\d+"\}', '"other":{}', text)
    assert "known_trip_count" not in silent
    assert sent(silent) == sent(text) == ({"collective-permute": count * 256} if count else {})


LOOP = """HloModule m, num_partitions=4

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8] get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%two, %i)
  %y = f32[8] all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%sum
  ROOT %t = (s32[], f32[8]) tuple(%next, %y)
}

%cond (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(9)
  ROOT %c = pred[] compare(%n, %i), direction=GT
}

ENTRY %main (x: f32[8]) -> (s32[], f32[8]) {
  %x = f32[8] parameter(0)
  %first = s32[] constant(1)
  %start = (s32[], f32[8]) tuple(%first, %x)
  ROOT %w = (s32[], f32[8]) while((s32[], f32[8]) %start), condition=%cond, body=%body
}
"""


@pytest.mark.parametrize(
    ("condition", "turns"),
    [
        ("compare(%n, %i), direction=GT", 4),  # 1, 3, 5, 7
        ("compare(%n, %i), direction=GE", 5),
        ("compare(%i, %n), direction=LT", 4),
        ("compare(s32[] %i, s32[] %n), direction=LE", 5),
    ],
)
def test_a_condition_may_be_written_either_way(condition, turns):
    text = LOOP.replace("compare(%n, %i), direction=GT", condition)
    assert collectives(text) == (Collective("all-reduce", turns * 48, turns),)  # 2 * 3/4 of 32


@pytest.mark.parametrize(
    ("old", "new"),
    [("GT", "LT"), ("GT", "NE"), ("constant(1)", "parameter(1)"), ("constant(2)", "constant(-2)")],
)
def test_a_condition_that_does_not_tell_is_an_error(old, new):
    with pytest.raises(ValueError, match="loop w holds a collective and its number of turns"):
        sent(LOOP.replace(old, new))


def test_a_collective_in_a_condition_is_asked_once_more():
    text = LOOP.replace(
        "%n = s32[] constant(9)",
        "%n = s32[] constant(9)\n  %m = s32[] all-reduce(%i), replica_groups=[1,4]<=[4]",
    )
    assert sent(text) == {"all-reduce": 4 * 48 + 5 * 6}


def test_a_loop_of_unknown_length_is_an_error(line):
    def f(x):
        return lax.while_loop(lambda y: y[0, 0] < 5, lambda y: rotate(y) + 1, x)

    with pytest.raises(ValueError, match="number of turns is unknown; expected known_trip_count"):
        sent(compiled(f, line))
    # without a collective in it, nobody asks how long it is
    alone = lambda x: lax.while_loop(lambda y: y[0, 0] < 5, lambda y: y + 1, x)
    assert sent(compiled(alone, line)) == {}


# --------------------------------------------------------------------- forms of other backends

ASYNC = """HloModule m, is_scheduled=true, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%wrapped (p: bf16[8,64]) -> bf16[2,64] {
  %p = bf16[8,64]{1,0} parameter(0)
  ROOT %r = bf16[2,64]{1,0} reduce-scatter(bf16[8,64]{1,0} %p), replica_groups=[1,4]<=[4]
}

ENTRY %main (x: bf16[8,64], y: f32[3]) -> bf16[8,64] {
  %x = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  %y = f32[3]{0} parameter(1)
  %s = (bf16[8,64]{1,0}, bf16[8,64]{1,0}, /*index=2*/u32[], u32[]) collective-permute-start(%x), \
source_target_pairs={{0,1},{1,0}}
  %d = bf16[8,64]{1,0} collective-permute-done(%s)
  %gs = ((bf16[8,64], f32[3]), (bf16[32,64], f32[12])) all-gather-start(%x, %y), \
replica_groups={{0,1,2,3}}, dimensions={0}
  %gd = (bf16[32,64]{1,0}, f32[12]{0}) all-gather-done(%gs)
  %rs = f32[3]{0} all-reduce-start(%y), replica_groups={{0,1},{2,3}}, to_apply=%add
  %rd = f32[3]{0} all-reduce-done(%rs)
  %as = ((bf16[8,64]), bf16[2,64], s32[]) async-start(%x), calls=%wrapped
  %au = ((bf16[8,64]), bf16[2,64], s32[]) async-update(%as), calls=%wrapped
  %ad = bf16[2,64]{1,0} async-done(%au), calls=%wrapped
  ROOT %out = bf16[8,64]{1,0} copy(%d)
}
"""


def test_asynchronous_forms_count_once():
    whole = 8 * 64 * 2
    assert collectives(ASYNC) == (
        Collective("collective-permute", whole, 1),
        Collective("all-gather", 3 * (whole + 12), 1),
        Collective("reduce-scatter", 3 * whole // 4, 1),
        Collective("all-reduce", 12, 1),
    )


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("collective-permute-start(%x)", "send(%x)", "send has no rule here"),
        ("reduce-scatter(bf16", "reduce-scatter(odd", "dtype 'odd'"),
        ("calls=%wrapped", "calls=%lost", "'lost' is called but not defined"),
        ("all-reduce-start(%y)", "all-reduce-start(%z)", "operand 'z' of rs is undefined"),
        ("ENTRY ", "", "no ENTRY computation"),
    ],
)
def test_what_is_not_understood_is_an_error(old, new, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        sent(ASYNC.replace(old, new))
