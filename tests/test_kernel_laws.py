"""The laws on the Triton kernels, run by Triton's interpreter: every variant that they support.

`ATTNJAX_LAWS=all` takes every variant, the default a sample: the interpreter is slow.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.catalogue import VARIANTS
from attnjax.core.pairwise.triton import Triton
from attnjax.core.recurrence import triton
from tests.test_laws import accepts, arrays, bound, cast, close_trees, direction, obeys, others

pytest.importorskip("triton")

FORMS = {
    "attend": Triton(block_q=16, block_k=16, interpret=True),
    "linear_attend": triton.Triton(chunk=16, interpret=True),
}
SUITED = [v for v in VARIANTS if accepts(v, "impl") and v.engine in FORMS]
ALL = os.environ.get("ATTNJAX_LAWS") == "all"


def one_in(share, start=0):
    some = SUITED if ALL else SUITED[start % share :: share]
    return pytest.mark.parametrize("variant", some, ids=lambda v: v.name)


def with_kernels(variant, args, dtype=jnp.float32):
    """(the variant by kernels as a function of its arrays, these); skips with their reason."""
    given, rest = cast(arrays(args), dtype), others(args)
    run = lambda given: variant.fn(**given, **rest, impl=FORMS[variant.engine])
    try:
        jax.eval_shape(run, given)
    except ValueError as error:
        if "does not run this call" not in str(error):
            raise
        pytest.skip(str(error))
    return jax.jit(run), given


def truth(variant, args):
    with jax.enable_x64():
        given = cast(arrays(args), jnp.float64)
        out, pull = jax.vjp(bound(variant, args, "truth"), given)
        step = direction(out, 5)
        return as_numpy(out), as_numpy(step), as_numpy(pull(step)[0])


def as_numpy(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@one_in(8)
def test_equal_the_truth_in_value_and_gradient(variant):
    args = variant.sample(seed=4)
    run, given = with_kernels(variant, args)
    want, step, grads = truth(variant, args)
    out, pull = jax.vjp(run, given)
    close_trees(as_numpy(out), want, 2e-5)
    got = pull(jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), step, out))[0]
    close_trees(as_numpy(got), grads, 5e-5)


@one_in(24, 3)
def test_other_lengths_equal_the_truth(variant):
    for sizes in ({"T": 1, "S": 1}, {"T": 7, "S": 19}, {"T": 19, "S": 7}):
        if sizes["T"] != sizes["S"] and "unequal" in variant.exempt:
            continue
        args = variant.sample(seed=2, **sizes)
        run, given = with_kernels(variant, args)
        close_trees(as_numpy(run(given)), truth(variant, args)[0], 2e-5)


@one_in(24, 11)
def test_twice_is_bit_equal_and_vmap_is_a_loop(variant):
    args = variant.sample(seed=6)
    run, given = with_kernels(variant, args)
    both = [given, cast(arrays(variant.sample(seed=7)), jnp.float32)]
    each = [run(x) for x in both]
    jax.tree.map(np.testing.assert_array_equal, run(given), each[0])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *both)
    mapped = jax.vmap(run)(stacked)
    for i, one in enumerate(each):
        close_trees(as_numpy(jax.tree.map(lambda x, i=i: x[i], mapped)), as_numpy(one), 1e-6)


@one_in(24, 17)
def test_bfloat16_is_as_good_as_the_naive_formula(variant, in_their_own_dtype):
    """At most twice the error of the dense form with everything in bfloat16, against float64."""
    obeys(variant, "bfloat16")
    args = variant.sample(seed=15, T=24, S=24)
    run, given = with_kernels(variant, args, jnp.bfloat16)
    rounded = as_numpy(given)
    with jax.enable_x64():
        want = as_numpy(bound(variant, args, "truth")(cast(rounded, jnp.float64)))
    got = as_numpy(run(given))
    in_their_own_dtype()
    naive = as_numpy(bound(variant, args, "truth")(given))
    worst = lambda a, b: float(np.abs(a - b).max())
    error = lambda x: max(jax.tree.leaves(jax.tree.map(worst, x, want)))
    assert error(got) <= 2 * error(naive)
