"""Meshes with Explicit axes, as `jax.make_mesh` makes them: values, and where results lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from attnjax import attend, masks
from attnjax.core.pairwise.triton import Triton
from attnjax.core.scan.convolution import depthwise
from attnjax.parallel import AllGather, Ring, Ulysses, shard
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
        with pytest.raises(ValueError, match="the interpreter of kernels runs on one device"):
            attend(there, there, there, impl=Triton(interpret=True))
