"""LASP-2 inside `jax.shard_map`: states, padding, and what is gathered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from attnjax import linear_attend
from attnjax.parallel import (
    LASP2,
)
from attnjax.parallel.layouts import order
from attnjax.parallel.model import costs, traffic
from tests.helpers import close, qkv
from tests.parallel.inside import (
    LINE,
    P,
    slowly,
)

pytestmark = pytest.mark.usefixtures("fresh_programs_everywhere")


def test_states_of_later_devices_reach_no_earlier_one():
    q, k, v = qkv(1, 32, 2, 4, seed=1)
    beta, split = jax.nn.sigmoid(k[..., 0]), P(None, "sp")
    alone = Mesh(np.array(jax.devices()[:1]), ("sp",), axis_types=(AxisType.Auto,))
    fn = lambda *x: linear_attend(*x[:3], beta=x[3], impl=LASP2("sp"))
    over = lambda mesh: jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=split, out_specs=split))
    run = over(LINE)
    out = run(q, k, v, beta)
    later = run(*(x.at[:, 20:].set(0.5) for x in (q, k, v, beta)))
    assert np.array_equal(later[:, :20], out[:, :20])
    assert np.abs(later[:, 20:] - out[:, 20:]).max() > 0.1
    close(over(alone)(q, k, v, beta), linear_attend(q, k, v, beta=beta, impl="recurrent"), 1e-5)


def test_padding_of_linear_attention_writes_nothing_whatever_it_holds():
    q, k, v = qkv(1, 16, 2, 4)
    log_decay, beta = -jax.nn.softplus(q[..., 0]), jax.nn.sigmoid(k[..., 0])
    want = linear_attend(*(x[:, :13] for x in (q, k, v)), log_decay=log_decay[:, :13],
                         beta=beta[:, :13], return_state=True)  # fmt: skip

    def inside(q, k, v, log_decay, beta):
        strategy = LASP2("sp", "zigzag", lengths=(13, 13))
        gates = {"log_decay": log_decay, "beta": beta}
        return linear_attend(q, k, v, **gates, impl=strategy, return_state=True)

    at, split = order("zigzag", 8, 16), P(None, "sp")
    run = jax.shard_map(
        inside, mesh=LINE, in_specs=split, out_specs=(split, P()), check_vma=False
    )  # fmt: skip
    out, state = jax.jit(run)(*(x[:, at] for x in (q, k, v, log_decay, beta)))
    close((out[:, np.argsort(at)][:, :13], state), want, 1e-5)


def compiled(fn, *args):
    return jax.jit(fn).lower(*args).compile().as_text()


@pytest.mark.parametrize("decay", slowly(["head", "delta"], ["none", "channel"]))
@pytest.mark.parametrize("length", slowly([64], [128]))
def test_linear_attention_gathers_states_once_each_way(decay, length):
    a = costs.Attention(1, length, length, 4, 4, 8, 8, bytes=4, mask="full")

    def run(q, k, v, decay_, beta):
        gates = {"none": {}, "delta": {"log_decay": decay_[..., 0], "beta": beta}}
        gates |= {"head": {"log_decay": decay_[..., 0]}, "channel": {"log_decay": decay_}}
        return linear_attend(q, k, v, **gates[decay], impl=LASP2("sp"))

    split = P(None, "sp")
    run = jax.shard_map(run, mesh=LINE, in_specs=split, out_specs=split, check_vma=False)
    like = lambda *shape: jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=NamedSharding(LINE, split)
    )
    wide, gate = like(1, length, 4, 8), like(1, length, 4)
    args = (wide, wide, wide, wide, gate)
    cost = costs.lasp2(a, 8, decay=decay)
    (gathered,) = traffic.collectives(compiled(run, *args))
    assert (gathered.op, gathered.count, gathered.bytes) == ("all-gather", 1, cost.forward_bytes)

    def both_ways(d, *args):
        out, pull = jax.vjp(run, *args)
        return out, pull(d)

    ways = traffic.collectives(compiled(both_ways, wide, *args))
    assert {c.op for c in ways} == {"all-gather"} and sum(c.count for c in ways) == 2
    assert sum(c.bytes for c in ways) == cost.forward_bytes + cost.backward_bytes
