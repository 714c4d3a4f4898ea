"""Exported with symbolic sizes, one program serves every batch and length."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from attnjax import Blockwise, attend, features, linear_attend, masks, mods, normalizers
from tests.helpers import draws

N, H = 2, 8
SOFT = functools.partial(attend, mods=(mods.soft_cap(5.0),), mask=masks.causal & masks.window(40))
CALLS = {
    "dense": functools.partial(attend, mask=masks.causal, impl="dense"),
    "chosen": functools.partial(attend, mask=masks.causal),
    "no mask": functools.partial(attend, impl=Blockwise(32, 32)),
    "blockwise": functools.partial(SOFT, impl=Blockwise(32, 32)),
    "softpick": functools.partial(attend, normalizer=normalizers.softpick(), impl="blockwise"),
    "linear": lambda q, k, v: linear_attend(
        features.elu1(q), features.elu1(k), v, normalize=normalizers.divide
    ),
    "decayed": lambda q, k, v: linear_attend(
        q, k, v, log_decay=-jax.nn.softplus(q), chunk=16, impl="chunked"
    ),
}


SLOW = ("no mask", "softpick", "chosen")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CALLS]
)
def test_one_exported_program_serves_all_batches_and_lengths(name):
    def both(q, k, v):
        loss = lambda *x: jnp.sum(jnp.sin(CALLS[name](*x)))
        return CALLS[name](q, k, v), jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    B, T = export.symbolic_shape("B, T")
    like = jax.ShapeDtypeStruct((B, T, N, H), jnp.float32)
    program = export.export(jax.jit(both))(like, like, like)
    for size in ((1, 5), (2, 70)):
        q, k, v = draws(*[(*size, N, H)] * 3)
        got, want = program.call(q, k, v), both(q, k, v)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
