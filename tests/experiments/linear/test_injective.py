"""Divisive linear attention takes collinear queries for one; injective and softmax do not."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from attnjax.ops.softmax_core import multi_head_attention
from attnjax.probes import attention_map
from experiments.linear import injective


@pytest.mark.parametrize(
    ("op", "share"),
    [(injective.divisive, 1.0), (injective.injective, 0.0), (multi_head_attention, 0.0)],
    ids=["divisive", "injective", "softmax"],
)
def test_only_divisive_attention_gives_doubled_queries_the_same_weights(op, share):
    k, q = jax.random.normal(jax.random.key(3), (2, 1, 32, 4, 8))
    one, two = (attention_map(op, x, k) for x in (jnp.abs(q), 2 * jnp.abs(q)))
    same = jnp.abs(one - two).max(-1) < 1e-5 * jnp.abs(one).max(-1)
    assert float(same.mean()) == share


def test_each_layer_has_neighbor_weights_of_its_own():
    [task] = injective.studied(injective.Config(depth=2)).values()
    made: Any = cast(Any, task.arms["injective, local"])(0)
    one, two = (block.attention.attend.linear.kernel[...] for block in made.stack.blocks)
    assert one.shape == two.shape and (one != two).any()
    assert nnx.state(made.stack.blocks[0].attention.attend, nnx.Param)
