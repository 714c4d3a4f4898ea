"""Inside shard_map an op equals one device, or refuses: it never takes a part for the text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from attnjax.catalogue import OPS
from attnjax.ops.sparse_select import moba
from attnjax.parallel import LASP2, AllGather
from tests.helpers import draw
from tests.laws.cases import applies, case, forget, others

STRATEGIES = {"attend": AllGather("sp"), "linear_attend": LASP2("sp")}
MESH = jax.make_mesh((2,), ("sp",), (AxisType.Auto,), devices=jax.devices()[:2])


def inside(fn, specs):
    return jax.jit(
        jax.shard_map(fn, mesh=MESH, in_specs=(specs,), out_specs=P(None, "sp"), check_vma=False)
    )


def test_an_op_that_chooses_among_all_keys_says_what_to_take():
    q = draw(1, 8, 2, 4)
    run = inside(
        lambda x: moba(x, x, x, block_size=2, top_k=2, impl=AllGather("sp")), P(None, "sp")
    )
    with pytest.raises(ValueError, match=r"moba: impl is AllGather.*parallel.shard\(moba, mesh"):
        run(q)


LAWFUL = [op for op in OPS if applies(op, "devices")]


def equals_or_refuses(op):
    truth = case(op, "truth", T=16, S=16)
    given = truth.given(18, jnp.float64)
    of_tokens = lambda name: op.shapes.get(name, ())[:2] in (("B", "T"), ("B", "S"))
    specs = {name: P(None, "sp") if of_tokens(name) else P() for name in given}
    rest = {**others(truth.sample(18)), "impl": STRATEGIES[op.engine]}
    try:
        got = inside(lambda x: op.fn(**x, **rest), specs)(given)
    except ValueError as error:
        assert "a part of the tokens" in str(error), op.name
        return
    assert np.allclose(got, truth.value(given), rtol=0, atol=1e-10), op.name


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({op.family for op in LAWFUL}))
def test_an_op_equals_one_device_or_refuses(family):
    """By families: a test of single ops would be taken by turns, as laws are."""
    with jax.enable_x64():
        for op in LAWFUL:
            if op.family == family:
                equals_or_refuses(op)
                forget()
