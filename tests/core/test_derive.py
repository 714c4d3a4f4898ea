"""Every derivative of ops that are given by their value and their gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from attnjax import Blockwise, attend, linear_attend, masks, mods, normalizers, select
from attnjax.core.derive import Derived, Static, in_reverse
from attnjax.core.pairwise import triton as pairwise_triton
from attnjax.core.recurrence import triton as linear_triton
from attnjax.parallel import LASP2, Ring, Ulysses
from tests.helpers import sample

# --------------------------------------------------------------------------- an op by itself
#
#     out = (w sum_i sin(i a) for i = 1 .. n, a w), n an array: a loop without reverse mode


def summed(term, count, like):
    return lax.fori_loop(0, count, lambda i, total: total + term(i + 1), jnp.zeros_like(like))


def forward(x, rest):
    a, w = x
    sines = summed(lambda i: jnp.sin(i * a), rest["count"], a)
    return (w * sines, rest["factor"].value * a * w), sines


def backward(x, rest, sines, cotangent):
    a, w = x
    first, second = cotangent
    second = rest["factor"].value * second
    slope = summed(lambda i: i * jnp.cos(i * a), rest["count"], a)
    return first * w * slope + second * w, first * sines + second * a


COUNT = 3
OP = Derived(forward, backward)


def op(a, w):
    first, second = OP((a, w), {"count": jnp.int32(COUNT), "factor": Static(2.0)})
    return jnp.sum(first**2) + jnp.sum(jnp.sin(second))


def plain(a, w):
    first = w * sum(jnp.sin(i * a) for i in range(1, COUNT + 1))
    return jnp.sum(first**2) + jnp.sum(jnp.sin(2.0 * a * w))


RNG = np.random.default_rng(0)
A, W, DA, DW = RNG.standard_normal((4, 3))
STACK = RNG.standard_normal((2, 3))
hvp = lambda f, a, w: jax.jvp(jax.grad(f, (0, 1)), (a, w), (DA, DW))[1]
rounds = lambda f: lambda a: lax.scan(lambda a, _: (a + 0.1 * f(a, W), None), a, None, length=2)[0]

TRANSFORMATIONS = {
    "value": lambda f: f(A, W),
    "jvp": lambda f: jax.jvp(f, (A, W), (DA, DW)),
    "jvp of one": lambda f: jax.jvp(lambda a: f(a, W), (A,), (DA,)),
    "grad": lambda f: jax.grad(f, (0, 1))(A, W),
    "grad of one": lambda f: jax.grad(f, 1)(A, W),
    "jvp of grad": lambda f: hvp(f, A, W),
    "grad of jvp": lambda f: jax.grad(lambda a, w: jax.jvp(f, (a, w), (DA, DW))[1], (0, 1))(A, W),
    "grad of jvp of one": lambda f: jax.grad(
        lambda a, w: jax.jvp(lambda w: f(a, w), (w,), (DW,))[1], (0, 1)
    )(A, W),
    "grad of grad": lambda f: jax.grad(lambda a: jax.grad(f, 1)(a, W) @ DW)(A),
    "jvp of jvp": lambda f: jax.jvp(lambda a: jax.jvp(f, (a, W), (DA, DW))[1], (A,), (DA,)),
    "grad by the direction": lambda f: jax.grad(
        lambda d: jnp.sum(jax.jvp(jax.grad(f, 1), (A, W), (d, DW))[1] ** 2)
    )(DA),
    "third, in forward mode": lambda f: jax.jvp(lambda a: hvp(f, a, W), (A,), (DA,)),
    "vmap of hvp": lambda f: jax.vmap(lambda a: hvp(f, a, W))(STACK),
    "grad of vmap": lambda f: jax.grad(lambda w: jnp.sum(jax.vmap(f, (0, None))(STACK, w)))(W),
    "grad of jvp of vmap": lambda f: jax.grad(
        lambda w: jnp.sum(jax.jvp(lambda w: jax.vmap(f, (0, None))(STACK, w), (w,), (DW,))[1] ** 2)
    )(W),
    "vmap of vmap of grad": lambda f: jax.vmap(
        lambda a: jax.vmap(lambda w: jax.grad(f, (0, 1))(a, w))(STACK)
    )(STACK),
    "grad of vmap of vmap": lambda f: jax.grad(
        lambda a: jnp.sum(jax.vmap(lambda w: jax.vmap(lambda x: f(x * a, w))(STACK))(STACK) ** 2)
    )(A),
    "hessian": lambda f: jax.hessian(f, (0, 1))(A, W),
    "hessian in reverse": lambda f: jax.jacrev(jax.jacrev(f, (0, 1)), (0, 1))(A, W),
    "remat": lambda f: jax.grad(jax.checkpoint(f))(A, W),
    "linearize": lambda f: jax.linearize(f, A, W)[1](DA, DW),
    "scan": lambda f: jax.jacrev(rounds(f))(A),
    "scan of remat": lambda f: jax.jacrev(rounds(jax.checkpoint(f)))(A),
    "scan, hvp": lambda f: jax.jvp(jax.grad(lambda a: jnp.sum(rounds(f)(a))), (A,), (DA,)),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_every_transformation_is_that_of_the_plain_function(name):
    with jax.enable_x64():
        run = lambda f: jax.jit(functools.partial(TRANSFORMATIONS[name], f))()
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-10), run(op), run(plain))


def test_eager_calls_are_those_of_jit():
    for name in ("grad", "jvp of grad", "grad of jvp", "vmap of hvp"):
        found, want = TRANSFORMATIONS[name](op), TRANSFORMATIONS[name](plain)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-4, 1e-5), found, want)


def test_what_is_equal_stands_in_for_all_but_reverse_mode():
    """A function that is traced in reverse mode alone, and says so."""

    @jax.custom_vjp
    def cube(a):
        return a**3

    cube.defvjp(lambda a: (a**3, a), lambda a, c: (7.0 * c * a**2,))  # 7, to be told apart
    f = in_reverse(lambda a, rest: cube(a), lambda a, rest: a**3)
    a = jnp.float32(2.0)
    assert jax.grad(lambda a: f(a, None))(a) == 28.0
    assert jax.jvp(lambda a: f(a, None), (a,), (jnp.float32(1.0),))[1] == 12.0
    assert jax.hessian(lambda a: f(a, None))(a) == 12.0


# ------------------------------------------------------------------------ the implementations

B, T, N, K, H, D = 1, 16, 4, 2, 4, 4
LINE = jax.make_mesh((2,), ("sp",), axis_types=(jax.sharding.AxisType.Auto,))


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


ARGS = draw(1, B, T, N, H), draw(2, B, T, K, H), draw(3, B, T, K, D), draw(4, B, T, N)
STEP = tuple(draw(5 + i, *x.shape) for i, x in enumerate(ARGS))


def paired(impl, normalizer, q, k, v, row):
    terms = (mods.forget(-jnp.abs(row)), mods.soft_cap(4.0))
    return attend(q, k, v, mods=terms, mask=masks.causal, normalizer=normalizer, impl=impl)


def selected(impl, q, k, v, row):
    scores = lax.stop_gradient(select.dot_scores(q, select.mean_pool(k, 4)))
    chosen = select.top_k(select.causal_scores(scores, 1, 4), 2, block_q=1, block_k=4)
    return attend(
        q, k, v, blocks=chosen, mods=(mods.alibi(row[0, 0]),), mask=masks.causal, impl=impl
    )


def recurrent(impl, q, k, v, row):
    beta, decay = jax.nn.sigmoid(row), -jax.nn.softplus(row)
    return linear_attend(q, k / 4, v, log_decay=decay, beta=beta, impl=impl)


def sharded(fn, impl):
    tokens = P(None, "sp")
    run = functools.partial(fn, impl)
    return jax.shard_map(run, mesh=LINE, in_specs=(tokens,) * 4, out_specs=tokens)


def derivatives(f, args, step):
    """In forward mode; and by a direction, of the gradient, by all three roads."""
    loss = lambda *x: jnp.sum(f(*x) ** 2)
    grad = jax.grad(loss, range(4))
    along = lambda *x: jax.jvp(loss, x, step)[1]
    dot = lambda *x: sum(jnp.vdot(g, d) for g, d in zip(grad(*x), step, strict=True))
    return {
        "forward": jax.jvp(f, args, step)[1],
        "forward over reverse": jax.jvp(grad, args, step),
        "reverse over forward": jax.grad(along, range(4))(*args),
        "reverse over reverse": jax.grad(dot, range(4))(*args),
    }


def compare(f, like, dtype, tolerance):
    args, step = jax.tree.map(lambda x: jnp.asarray(x, dtype), (ARGS, STEP))
    run = lambda f: jax.jit(functools.partial(derivatives, f))(args, step)
    found, want = run(f), run(like)

    def close(x, y):
        np.testing.assert_allclose(x, y, atol=tolerance * max(1.0, np.abs(y).max()))

    jax.tree.map(close, found, want)


SOFTMAX, ENTMAX = normalizers.softmax, normalizers.entmax(1.5)
CLIPPED = normalizers.clipped_softmax(-0.05, 1.05)
ROADS = {
    "tiles": (functools.partial(paired, Blockwise(4, 3), SOFTMAX), (paired, "dense", SOFTMAX)),
    "tiles, two passes": (
        functools.partial(paired, Blockwise(4, 3), CLIPPED), (paired, "dense", CLIPPED)
    ),
    "tiles, many passes": (
        functools.partial(paired, Blockwise(4, 3), ENTMAX), (paired, "dense", ENTMAX)
    ),
    "tiles of a selection": (functools.partial(selected, Blockwise(4)), (selected, "dense")),
    "ring": (
        sharded(lambda impl, *x: paired(impl, SOFTMAX, *x), Ring("sp")), (paired, "dense", SOFTMAX)
    ),
    "heads": (
        sharded(lambda impl, *x: paired(impl, SOFTMAX, *x), Ulysses("sp")),
        (paired, "dense", SOFTMAX),
    ),
    "states": (sharded(recurrent, LASP2("sp", chunk=4)), (recurrent, "recurrent")),
}  # fmt: skip


@pytest.mark.parametrize("name", sample(["tiles"], ROADS, pytest.mark.slow))
def test_every_implementation_has_every_derivative(name):
    f, (like, *terms) = ROADS[name]
    with jax.enable_x64():
        compare(f, functools.partial(like, *terms), jnp.float64, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pairs", "recurrence"])
def test_kernels_have_every_derivative(name):
    if name == "pairs":
        impl = pairwise_triton.Triton(16, 16, interpret=True)
        f, like = (functools.partial(paired, x, SOFTMAX) for x in (impl, "dense"))
    else:
        f, like = (
            functools.partial(recurrent, x)
            for x in (linear_triton.Triton(16, interpret=True), "recurrent")
        )
    compare(f, like, jnp.float32, 2e-4)
