"""Meshes with Explicit axes, as `jax.make_mesh` makes them: values, and where results lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from attnjax import attend, explain, linear_attend, masks
from attnjax.core import features
from attnjax.core.blocks import select
from attnjax.core.blocks.block_maps import block_mass
from attnjax.core.pairwise.triton import Triton
from attnjax.core.scan.convolution import depthwise, long_conv
from attnjax.core.scan.diagonal import linear_scan
from attnjax.core.sharding import no_kernel, on_any_mesh
from attnjax.parallel import LASP2, USP, AllGather, Ring, Ulysses, layout, shard, unlayout
from tests.helpers import close, draw

MESH = jax.make_mesh((2, 2), ("data", "sp"), devices=jax.devices()[:4])
pytestmark = pytest.mark.usefixtures("fresh_programs_everywhere")


def both(fn, *args):
    """The result, and the gradients of a function of it."""
    value = lambda *x: jnp.sin(3 * fn(*x)).sum()
    return jax.jit(lambda *x: (fn(*x), jax.grad(value, argnums=(0, 1, 2))(*x)))(*args)


def causal(q, k, v, impl="blockwise"):
    return attend(q, k, v, mask=masks.causal, impl=impl)


def drawn():
    return draw(4, 32, 4, 8), draw(4, 32, 2, 8, seed=1), draw(4, 32, 2, 8, seed=2)


@pytest.mark.parametrize(
    "strategy", [None, Ring("sp", "zigzag"), Ulysses("sp", "striped"), AllGather("sp")]
)
def test_results_keep_the_sharding_of_the_queries(strategy):
    with jax.enable_x64():
        args = drawn()
        want = both(causal, *args)
        fn = causal if strategy is None else shard(causal, MESH, strategy)
        spec = P("data", None, "sp") if strategy is None else P("data", "sp")
        there = tuple(jax.device_put(x, NamedSharding(MESH, spec)) for x in args)
        with jax.set_mesh(MESH):
            got = both(fn, *there)
        jax.tree.map(lambda a, b: close(a, b), got, want)
        assert all(x.sharding.is_equivalent_to(there[0].sharding, 4) for x in jax.tree.leaves(got))
        close(jax.jit(fn)(*there), want[0])  # the arrays know their mesh


def test_heads_and_batch_are_attended_to_where_they_lie():
    args = (jax.device_put(x, NamedSharding(MESH, P("data", None, "sp"))) for x in drawn())
    with jax.set_mesh(MESH):
        program = jax.jit(lambda *x: both(causal, *x)).lower(*args).compile().as_text()
    assert not any(name in program for name in ("all-gather", "all-to-all", "collective-permute"))


def test_a_ring_leaves_a_permuted_result_split():
    where = NamedSharding(MESH, P("data", "sp"))
    auto = jax.make_mesh(
        (2, 2), ("data", "sp"), (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:4]
    )
    ring = shard(causal, auto, Ring("sp", "zigzag"))
    args = (
        jax.device_put(np.asarray(x, np.float32), NamedSharding(auto, where.spec)) for x in drawn()
    )
    out = jax.jit(ring)(*args)
    assert out.sharding.is_equivalent_to(NamedSharding(auto, where.spec), 4)


AUTO = jax.sharding.AxisType.Auto


@pytest.mark.parametrize(
    "strategy", [Ring("sp"), Ring("sp", "striped"), USP("data", "sp"), LASP2("sp")], ids=repr
)
def test_every_strategy_takes_explicit_axes_in_float64(strategy):
    with jax.enable_x64():
        args = drawn()
        linear = lambda q, k, v, impl=None: linear_attend(q, k, v, impl=impl)
        fn = linear if isinstance(strategy, LASP2) else causal
        there = tuple(jax.device_put(x, NamedSharding(MESH, P("data", "sp"))) for x in args)
        got = both(shard(fn, MESH, strategy), *there)
        jax.tree.map(lambda a, b: close(a, b), got, both(fn, *args))


SCORES = np.random.default_rng(0).normal(size=(4, 8, 4, 8))
ALONE = {
    "mean_pool": lambda x: select.mean_pool(x, 4),
    "dot_scores": lambda x: select.dot_scores(x, x),
    "top_p_of_head": lambda x: select.top_p_of_head(jnp.abs(x), 0.5, block_k=4).indices,
    "threshold": lambda x: select.threshold(x, 0.5, block_k=4).indices,
    "block_mass": lambda x: block_mass(x, x, 4, 4, mask=masks.causal),
    "taylor": features.taylor(2),
    "running_max": lambda x: features.running_max(x.sum(2))[1],
    "long_conv": lambda x: long_conv(x.sum(2), jnp.ones((8, 8)))[0],
    "linear_scan": lambda x: linear_scan(x, x, jnp.ones((4, 4, 8)), 1),
    "layout": lambda x: unlayout(layout(x, 2, "zigzag")),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_ops_are_made_of_takes_explicit_axes_alone(name):
    with jax.enable_x64():
        want = ALONE[name](jnp.asarray(SCORES))
        for spec in (P("data", "sp"), P("data", None, "sp")):
            there = jax.device_put(SCORES, NamedSharding(MESH, spec))
            with jax.set_mesh(MESH):
                close(jax.jit(ALONE[name])(there), want)


def test_kernels_are_not_chosen_where_types_say_that_tokens_are_split():
    reasons = {}
    for spec in (P("data", "sp"), P("data", None, "sp")):
        there = jax.device_put(drawn()[0], NamedSharding(MESH, spec))
        on_any_mesh(lambda x, spec=spec: reasons.update({spec: no_kernel()}) or x)(there)
        told = str(explain(linear_attend, there, there, there))
        assert ("split along their tokens" in told) == (spec == P("data", "sp"))
    assert list(map(bool, reasons.values())) == [True, False]
    assert no_kernel() is None


def test_another_mesh_in_the_context_is_told():
    other = jax.make_mesh((2, 2), ("a", "b"), (AUTO,) * 2, devices=jax.devices()[:4])
    with jax.set_mesh(other), pytest.raises(ValueError, match="of 'a', 'b', expected that of On"):
        jax.jit(shard(causal, MESH, Ring("sp")))(*drawn())
    line = jax.make_mesh((4,), ("sp",), devices=jax.devices()[:4])
    with jax.enable_x64(), jax.set_mesh(other):  # along all axes it does
        close(jax.jit(shard(causal, line, Ring("sp")))(*drawn()), causal(*drawn()))


def test_the_kernel_of_a_convolution_gets_the_gradient_of_the_whole_batch_once():
    with jax.enable_x64():
        x, kernel = draw(2, 8, 4), draw(3, 4, seed=1)
        slope = jax.grad(lambda k, x: jnp.sin(depthwise(x, k)).sum())
        want = jax.jit(slope)(kernel, x)
        with jax.set_mesh(MESH):
            there = jax.device_put(x, NamedSharding(MESH, P("data")))
            close(jax.jit(slope)(jax.device_put(kernel, NamedSharding(MESH, P())), there), want)


def test_a_kernel_in_the_interpreter_refuses_a_mesh():
    x = draw(4, 32, 4, 16, dtype=jnp.float32)
    for spec in (P("data"), P(None, None, "sp")):
        there = jax.device_put(x, NamedSharding(MESH, spec))
        with pytest.raises(Exception, match="the interpreter of kernels runs on one device"):
            attend(there, there, there, impl=Triton(interpret=True))
