"""The law of many devices: eight virtual ones equal one, under every strategy of the engine."""

import jax
import jax.numpy as jnp
import pytest

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
