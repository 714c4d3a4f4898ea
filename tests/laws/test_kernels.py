"""The laws on the Triton kernels, run by Triton's interpreter: every op that they support."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.catalogue import OPS
from attnjax.core.pairwise.triton import Triton
from attnjax.core.recurrence import triton as recurrence
from tests.laws.cases import Case, applies, as_numpy, close_trees, direction

KERNELS = {
    "attend": Triton(block_q=16, block_k=16, interpret=True),
    "linear_attend": recurrence.Triton(chunk=16, interpret=True),
}


def ops(*laws):
    some = [op for op in OPS if all(applies(op, law) for law in ("kernels", *laws))]
    return pytest.mark.parametrize("op", some, ids=lambda op: op.name)


def by_kernels(op, given, **sizes):
    """The case by kernels; skips with their reason where they do not run it."""
    pytest.importorskip("triton")
    c = Case(op, KERNELS[op.engine], **sizes)
    try:
        jax.eval_shape(c.call, given)
    except ValueError as error:
        if "does not run this call" not in str(error):
            raise
        pytest.skip(str(error))
    return c


def truth(op, given, ct=None, **sizes):
    """The result in float64, and the gradients with a cotangent."""
    with jax.enable_x64():
        c = Case(op, "truth", **sizes)
        exact = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), given)
        if ct is None:
            return as_numpy(c.value(exact)), None
        return as_numpy(c.pull(exact, jnp.asarray(np.asarray(ct, np.float64))))


@ops()
def test_kernels_equal_the_truth(op):
    """In value and gradient."""
    given = Case(op).given(4)
    c = by_kernels(op, given)
    out, back = jax.vjp(c.value, given)
    ct = direction(out, 5)
    close_trees(as_numpy((out, back(ct)[0])), truth(op, given, ct), 5e-5)


@ops()
def test_kernels_at_other_lengths(op):
    unequal = ({"T": 7, "S": 19}, {"T": 19, "S": 7}) if applies(op, "unequal") else ()
    for sizes in ({"T": 1, "S": 1}, *unequal):
        given = Case(op, **sizes).given(2)
        c = by_kernels(op, given, **sizes)
        close_trees(as_numpy(c.value(given)), truth(op, given, **sizes)[0], 2e-5)


@ops()
def test_kernels_twice_are_bit_equal_and_vmap_is_a_loop(op):
    both = [Case(op).given(6), Case(op).given(7)]
    c = by_kernels(op, both[0])
    each = [c.value(x) for x in both]
    np.testing.assert_array_equal(c.value(both[0]), each[0])
    stacked = jax.tree.map(lambda *x: np.stack(x), *both)
    mapped = jax.vmap(c.value)(stacked)
    for i, one in enumerate(each):
        close_trees(as_numpy(mapped[i]), as_numpy(one), 1e-6)


@ops("bfloat16")
def test_kernels_in_bfloat16(op, in_their_own_dtype):
    """At most twice the error of the dense form with everything in bfloat16, against float64."""
    sizes = {"T": 24, "S": 24}
    given = Case(op, **sizes).given(15, jnp.bfloat16)
    c = by_kernels(op, given, **sizes)
    want, _ = truth(op, given, **sizes)
    got = as_numpy(c.value(given))
    in_their_own_dtype()
    naive = as_numpy(Case(op, "truth", **sizes).value(given))
    error = lambda x: np.abs(x - want).max()
    assert error(got) <= 2 * error(naive)
