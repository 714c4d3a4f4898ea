"""Masks, mods, normalizers and selections are values: pickled, copied, compared, hashed."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import masks, mods, normalizers, select


def even(q_pos, k_pos):
    return (q_pos - k_pos) % 2 == 0


def grid(seed=0):
    return np.random.default_rng(seed).random((6, 6)) < 0.5


def table(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


MAKE = {  # each twice: values made alike are equal
    "everything": lambda: masks.everything,
    "causal": lambda: masks.causal,
    "causal_to_end": lambda: masks.causal_to_end,
    "window": lambda: masks.window(3, 1),
    "sinks": lambda: masks.sinks(2),
    "prefix": lambda: masks.prefix(2),
    "prefixes": lambda: masks.prefix(np.array([1, 2])),
    "dilated": lambda: masks.dilated(2, 3),
    "array": lambda: masks.array(grid()),
    "document": lambda: masks.document([0, 0, 1, 1, 1, 2]),
    "lengths": lambda: masks.lengths(k=np.array([3, 4])),
    "until": lambda: masks.until(np.ones((1, 1, 6), int)),
    "block_layout": lambda: masks.block_layout(grid()[:3, :3], 2, 2),
    "neighborhood": lambda: masks.neighborhood((2, 3), 1),
    "fn": lambda: masks.fn(even),
    "combined": lambda: ~(masks.causal & (masks.array(grid()) | masks.sinks(1))),
    "alibi": lambda: mods.alibi(mods.alibi_slopes(4)),
    "soft_cap": lambda: mods.soft_cap(3.0),
    "relative_bias": lambda: mods.relative_bias(table(2, 5)),
    "t5_bias": lambda: mods.t5_bias(table(2, 8)),
    "pair_bias": lambda: mods.pair_bias(table(6, 6)),
    "forget": lambda: mods.forget(-jnp.abs(table(1, 6, 2))),
    "additive": lambda: mods.additive(table(1, 6, 2, 3), table(1, 6, 2, 3), table(2, 3)),
    "softmax": lambda: normalizers.softmax,
    "softmax_sink": lambda: normalizers.softmax_sink(table(2)),
    "softmax_one": lambda: normalizers.softmax_one,
    "sigmoid": lambda: normalizers.sigmoid(-1.5),
    "relu": lambda: normalizers.relu(2),
    "laplace": lambda: normalizers.laplace,
    "softpick": lambda: normalizers.softpick(),
    "signed": lambda: normalizers.signed,
    "taylor": lambda: normalizers.taylor(4),
    "hard": lambda: normalizers.hard,
    "softplus": lambda: normalizers.softplus(3, 0.5),
    "clipped_softmax": lambda: normalizers.clipped_softmax(-0.1),
    "entmax": lambda: normalizers.entmax(1.3),
    "sparsemax": lambda: normalizers.sparsemax,
    "selection": lambda: select.every_block(1, 6, 6, block_k=2),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKE)
def test_a_value_is_pickled_copied_compared_and_hashed(name):
    value = MAKE[name]()
    for other in (MAKE[name](), pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
        assert value == other and hash(value) == hash(other)
        # jit takes it for the same: nothing is compiled again
        assert jax.tree.structure(value) == jax.tree.structure(other)
    assert repr(value)


def test_values_that_differ_are_not_equal():
    values = [make() for make in MAKE.values()]
    assert not [(a, b) for i, a in enumerate(values) for b in values[:i] if a == b]
    assert masks.array(grid(0)) != masks.array(grid(1))
    assert masks.window(3) != masks.window(4) and masks.causal == masks.window(None, 0)
    assert mods.soft_cap(3.0) != mods.soft_cap(4.0)
    assert normalizers.taylor(2) != normalizers.taylor(4)
    assert normalizers.entmax(1.3) != normalizers.entmax(1.4)
    assert masks.causal != "causal" and normalizers.softmax != None  # noqa: E711


def test_comparing_under_jit_is_by_identity_of_what_is_traced():
    @jax.jit
    def f(x):
        cap = mods.soft_cap(x)
        assert cap == cap and cap != mods.soft_cap(x + 1)
        return x

    f(jnp.ones(()))
