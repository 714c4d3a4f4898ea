"""Kernels under jit over sharded arrays: split over examples and heads, or refused.

Triton's interpreter runs on one device only, so the kernels meet the partition inside shard_map;
XLA's partitioner is asked about functions of jax.numpy in their place.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from attnjax import linear_attend
from attnjax.core import masks, mods, normalizers
from attnjax.core.blocks.select import top_k
from attnjax.core.pairwise import triton as pairwise
from attnjax.core.pairwise.attend import attend
from attnjax.core.recurrence import triton as recurrence
from attnjax.kernels import partition
from attnjax.kernels.partition import NO_HEADS, Call, Split, over_devices

MESH = jax.make_mesh((2, 2), ("data", "tp"), (AxisType.Auto,) * 2, devices=jax.devices()[:4])
B, T, N, K, H = 4, 6, 4, 2, 8
SCALE = np.full(1, 2.0, np.float32)


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def laid_out(x, *spec):
    return jax.device_put(x, NamedSharding(MESH, P(*spec)))


# --------------------------------------------------------------------------- XLA's partitioner


def stand_in(q, k, scale):
    """What a kernel could give: rows, a sum over examples, a sum over the heads of queries."""
    q = q * scale
    wide = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    return jnp.cumsum(q * wide, 1), q.sum((0, 1))[None, None], q.sum(2, keepdims=True)


def run(q, k, scale):
    return over_devices(stand_in, (2, 2, NO_HEADS), (2, 2, 2))(q, k, scale)


@pytest.mark.parametrize("heads", [K, 1, N])
@pytest.mark.parametrize("spec", [("data", None, "tp"), (("data", "tp"),), (None, None, "tp"), ()])
def test_examples_and_heads_are_split_and_nothing_is_gathered(spec, heads):
    q, k = draw(B, T, N, H), draw(B, T, heads, H, seed=1)
    q_at, k_at = laid_out(q, *spec), laid_out(k, *(spec if heads > 1 else spec[:1]))
    program = jax.jit(run).lower(q_at, k_at, SCALE).compile()
    out = program(q_at, k_at, SCALE)
    for x, y in zip(out, stand_in(q, k, SCALE), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    assert "all-gather" not in program.as_text()
    assert out[0].sharding.is_equivalent_to(q_at.sharding, 4)


@pytest.mark.parametrize(
    "spec, told",
    [
        ((None, "data"), "split along its axis 1, over .'data',.*impl=On"),
        ((None, None, None, "tp"), "split along its axis 3"),
        ((None, None, ("data", "tp")), "a kernel of 2 and 4 heads cannot be split over 4 devices"),
    ],
)
def test_what_cannot_be_split_is_refused(spec, told):
    q, k = laid_out(draw(B, T, N, H), *spec), laid_out(draw(B, T, K, H))
    with pytest.raises(Exception, match=told):
        jax.jit(run)(q, k, SCALE)


def test_the_interpreter_refuses_several_devices():
    x = laid_out(draw(B, T, N, H), "data")
    for impl in (pairwise.Triton(interpret=True), recurrence.Triton(interpret=True)):
        call = attend if isinstance(impl, pairwise.Triton) else linear_attend
        with pytest.raises(Exception, match="the interpreter of kernels runs on one device"):
            jax.jit(functools.partial(call, impl=impl))(x, x, x)


# ----------------------------------------------------------------------------------- the kernels


@pytest.fixture
def by_hand(monkeypatch):
    """Splits calls of kernels as XLA would be told to, examples over "data" and heads over "tp"."""
    split, calls = Split(("data",), ("tp",)), []

    def partitioned(fn, heads, out_heads, one):
        def called(*trees):
            results = jax.eval_shape(fn, *trees)
            call = Call.of(trees, results, heads, out_heads)
            calls.append(call)
            like = lambda tree, specs: jax.tree.unflatten(jax.tree.structure(tree), specs)
            mapped = jax.shard_map(
                call.local(fn, split),
                mesh=MESH,
                in_specs=like(trees, call.specs(call.arguments, split)),
                out_specs=like(results, call.specs(call.results, split)),
                check_vma=False,
            )
            return mapped(*trees)

        return called

    monkeypatch.setattr(partition, "_partitioned", partitioned)
    return calls


def same(fn, impl, *args):
    """fn(impl, *args), its kernels split, has the value and gradients of the form without."""

    @functools.partial(jax.jit, static_argnums=0)
    def both(impl, args):
        out, pull = jax.vjp(functools.partial(fn, impl), *args)
        return out, *pull(jnp.asarray(draw(*out.shape, seed=9), out.dtype))

    want = both(None, args)
    got = both(impl, [laid_out(x) for x in args])
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5 * max(1, np.abs(y).max()))


IMPL = pairwise.Triton(block_q=16, block_k=16, interpret=True)
IDS = np.sort(np.random.default_rng(0).integers(0, 3, (B, T)))
CASES = {
    "of heads and examples": (
        K,
        lambda s, b: {"mods": (mods.alibi(s), mods.pair_bias(b)), "mask": masks.causal},
        (draw(N), draw(B, 1, T, T)),
    ),
    "one key head, tables of all": (
        1,
        lambda t, b: {
            "mods": (mods.relative_bias(t), mods.pair_bias(b)),
            "mask": masks.document(IDS),
        },
        (draw(5), draw(1, 1, T, T)),
    ),
    "normalizers with parameters": (
        N,
        lambda s, t: {"normalizer": normalizers.softmax_sink(s), "mods": (mods.relative_bias(t),)},
        (draw(N), draw(N, 5)),
    ),
    "statistics": (K, lambda: {"normalizer": normalizers.entmax(1.5)}, ()),
}


@pytest.mark.interpreter
@pytest.mark.parametrize("heads, options, operands", CASES.values(), ids=CASES)
def test_flash_kernels_of_a_part_are_parts_of_the_whole(by_hand, heads, options, operands):
    call = lambda impl, q, k, v, *xs: attend(q, k, v, impl=impl, **options(*xs))
    k, v = draw(B, T, heads, H, seed=1), draw(B, T, heads, H, seed=2)
    same(call, IMPL, draw(B, T, N, H), k, v, *operands)
    assert len(by_hand) >= 3


@pytest.mark.interpreter
def test_selected_blocks_of_a_part(by_hand):
    chosen = top_k(jnp.asarray(draw(B, 2, K, 2)), 1, block_q=4, block_k=4)
    call = lambda impl, q, k, v: attend(q, k, v, blocks=chosen, impl=impl)
    same(call, IMPL, draw(B, T, N, H), draw(B, T, K, H, seed=1), draw(B, T, K, H, seed=2))
    assert by_hand


@pytest.mark.interpreter
@pytest.mark.parametrize("heads", [1, K])
def test_linear_kernels_of_a_part_are_parts_of_the_whole(by_hand, heads):
    def call(impl, q, k, v, f, beta):
        k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
        given = {"log_decay": -jnp.abs(f), "beta": jax.nn.sigmoid(beta)}
        return linear_attend(q, k, v, impl=impl or "recurrent", **given)

    args = (draw(B, T, heads, H, seed=1), draw(B, T, heads, H, seed=2), draw(B, T, N))
    kernels = recurrence.Triton(chunk=16, interpret=True)
    same(call, kernels, draw(B, T, N, H), *args, draw(B, T, N, seed=3))
    assert len(by_hand) >= 4
