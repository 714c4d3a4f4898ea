"""Bytes on the wire, read from the HLO: how many, of which dtype, and when."""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from attnjax import Blockwise, attend, linear_attend, masks, mods
from attnjax.core.pairwise import fused
from attnjax.core.recurrence import triton
from attnjax.parallel import (
    USP,
    AllGather,
    Ring,
    Ulysses,
)
from attnjax.parallel.model import costs, traffic
from attnjax.parallel.wire import sent
from tests.helpers import qkv
from tests.parallel.inside import (
    LINE,
    SQUARE,
    P,
    slowly,
)

pytestmark = pytest.mark.usefixtures("fresh_programs_everywhere")


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


@pytest.mark.parametrize("name", slowly(["ring", "ulysses", "gather", "usp"], WIRES))
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


def test_shares_of_what_is_replicated_are_added_before_they_are_rounded():
    """Keys, values and tables, replicated while queries are split by heads: in every engine."""
    heads, everywhere = P(None, None, "sp"), P()
    q, k, v = (x.astype(jnp.bfloat16) for x in qkv(1, 16, 8, 16, K=1))
    row = jnp.ones((1, 16, 1), jnp.bfloat16)
    table = jnp.ones((1, 9), jnp.bfloat16)

    def paired(impl, q, k, v, row, table):
        terms = (mods.relative_bias(table), mods.forget(-row))
        return attend(q, k, v, mods=terms, mask=masks.causal, impl=impl)

    def recurrent(impl, q, k, v, row, table):
        return linear_attend(q, k, v, log_decay=-row, beta=row, impl=impl)

    for fn, impl in (
        (paired, "dense"), (paired, "blockwise"), (paired, fused.Triton(interpret=True)),
        (recurrent, "recurrent"), (recurrent, "chunked"),
        (recurrent, triton.Triton(interpret=True)),
    ):  # fmt: skip
        run = jax.shard_map(
            functools.partial(fn, impl), mesh=LINE,
            in_specs=(heads, *(everywhere,) * 4), out_specs=heads,
        )  # fmt: skip
        slope = jax.grad(lambda *x, run=run: jnp.sum(run(*x).astype(jnp.float32)), range(1, 4))
        traced = str(jax.make_jaxpr(slope)(q, k, v, row, table))
        assert set(re.findall(r":(\w+)\S* = psum_invariant\[", traced)) == {"f32"}, impl


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
