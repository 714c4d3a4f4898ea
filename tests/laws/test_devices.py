"""The laws of many devices: eight virtual ones equal one, under every strategy of the engine.

So do four under the Explicit axes that `jax.make_mesh` makes, without a strategy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from attnjax import parallel
from attnjax.catalogue import OPS
from tests.laws.cases import applies, case, close_trees, others
from tests.laws.test_one_device import wave

MESHES = {"line": jax.make_mesh((8,), ("sp",)), "square": jax.make_mesh((4, 2), ("ring", "head"))}
STRATEGIES = {
    "attend": {
        "ring": ("line", parallel.Ring("sp")),
        "ring_zigzag": ("line", parallel.Ring("sp", "zigzag")),
        "ring_striped": ("line", parallel.Ring("sp", "striped")),
        "ulysses": ("square", parallel.Ulysses("head")),
        "ulysses_striped": ("square", parallel.Ulysses("head", "striped")),
        "usp": ("square", parallel.USP("ring", "head")),
        "usp_zigzag": ("square", parallel.USP("ring", "head", "zigzag")),
        "all_gather": ("line", parallel.AllGather("sp")),
        "all_gather_zigzag": ("line", parallel.AllGather("sp", "zigzag")),
    },
    "linear_attend": {
        "lasp2": ("line", parallel.LASP2("sp")),
        "lasp2_zigzag": ("line", parallel.LASP2("sp", "zigzag")),
    },
}
# What strategies say to calls that are not for them: rings walk past all keys, so blocks selected
# from them and groups of neighbors have to be gathered, and one head is not shared by two devices.
REFUSALS = (
    "blocks are selected from all keys",
    "selected blocks need the layout 'contiguous'",
    "mods look at 4 neighboring keys",
    "N = 1 heads cannot be shared",
)
IN_FLOAT32 = ("ring_zigzag", "lasp2_zigzag")


def cases(only=None):
    some = [op for op in OPS if applies(op, "devices")]
    pairs = [(op, s) for op in some for s in STRATEGIES[op.engine] if only is None or s in only]
    return pytest.mark.parametrize(
        ("op", "strategy"), pairs, ids=[f"{o.name}-{s}" for o, s in pairs]
    )


def equals_one_device(op, strategy, dtype, tolerance):
    mesh, how = STRATEGIES[op.engine][strategy]
    truth = case(op, "truth")
    given = truth.given(18, dtype)
    spread, rest = parallel.shard(op.fn, MESHES[mesh], how), others(truth.sample(18))
    run = lambda x: spread(**x, **rest)
    try:
        jax.eval_shape(run, given)
    except ValueError as error:
        if not any(reason in str(error) for reason in REFUSALS):
            raise
        pytest.skip(str(error))
    ct = wave(truth.value(given))
    both = jax.jit(lambda x: (lambda out, back: (out, back(ct)[0]))(*jax.vjp(run, x)))
    close_trees(both(given), truth.pull(given, ct), tolerance)


@pytest.mark.usefixtures("fresh_programs")
@cases()
def test_devices(op, strategy):
    """In value and gradient."""
    with jax.enable_x64():
        equals_one_device(op, strategy, jnp.float64, 1e-10)


@pytest.mark.usefixtures("fresh_programs")
@cases(IN_FLOAT32)
def test_devices_in_float32(op, strategy):
    equals_one_device(op, strategy, jnp.float32, 2e-5)


EXPLICIT = jax.make_mesh((2, 2), ("data", "sp"), devices=jax.devices()[:4])
SPLITS = {
    "heads": {"B": "data", "N": "sp", "K": "sp"},
    "tokens": {"B": "data", "T": "sp", "S": "sp"},
}


def split(op, name, x, axes):
    """Where an argument lies: its axes of these letters over the mesh, the rest on every device."""
    letters = op.shapes.get(name, ())
    if letters[:1] != ("B",) or len(letters) != np.ndim(x):
        return P()
    even = lambda axis, size: axis if size % 2 == 0 else None
    return P(*(even(axes.get(a), n) for a, n in zip(letters, x.shape, strict=True)))


def splits():
    some = [(op, by) for op in OPS for by in SPLITS if applies(op, "explicit")]
    return pytest.mark.parametrize(("op", "by"), some, ids=[f"{o.name}-{b}" for o, b in some])


@pytest.mark.usefixtures("fresh_programs")
@splits()
def test_explicit(op, by):
    """In value and gradient; the result is split as its argument is."""
    with jax.enable_x64():
        truth = case(op, "truth", T=16, S=16)
        given, rest = truth.given(18, jnp.float64), others(truth.sample(18))
        ct = wave(truth.value(given))
        where = {name: split(op, name, x, SPLITS[by]) for name, x in given.items()}
        first = next(name for name in op.shapes if name in given)
        with jax.set_mesh(EXPLICIT):
            put = lambda tree, spec: jax.device_put(tree, NamedSharding(EXPLICIT, spec))
            spread = {name: put(x, where[name]) for name, x in given.items()}
            run = jax.jit(lambda x: op.fn(**x, **rest))
            out = run(spread)
            if np.shape(out)[:1] == given[first].shape[:1]:
                assert out.sharding.spec[0] == "data"
            pull = jax.jit(lambda x, ct: jax.vjp(run, x)[1](ct)[0])
            grads = pull(spread, jax.tree.map(lambda x, o: put(x, o.sharding.spec), ct, out))
        close_trees((out, grads), truth.pull(given, ct), 1e-10)
        for name, dx in grads.items():
            same = lambda g, x: g.sharding.is_equivalent_to(x.sharding, np.ndim(x))
            assert all(jax.tree.leaves(jax.tree.map(same, dx, spread[name])))
