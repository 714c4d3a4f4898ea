"""JAX's own modes change nothing: strict promotion, leak and NaN checks, no jit, no examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, features, linear_attend, masks, mods, normalizers, select
from attnjax.catalogue import OPS
from attnjax.ops.softmax_core.sinkhorn import sinkhorn_attention
from tests.helpers import draws, sample

B, T, N, K, H = 2, 9, 4, 2, 8
MODS = (mods.alibi(np.arange(1.0, N + 1)), mods.soft_cap(3.0))


def selected(q, k, v, impl):
    scores = select.causal_scores(select.dot_scores(q, select.mean_pool(k, 4)), 1, 4)
    return attend(q, k, v, blocks=select.top_k(scores, 2, block_k=4), mask=masks.causal, impl=impl)


def linear(q, k, v, **more):
    gate = -jax.nn.softplus(q[..., 0])
    return linear_attend(features.cosine(q), features.cosine(k), v, log_decay=gate, **more)


CALLS = {
    "dense": functools.partial(attend, mods=MODS, mask=masks.causal, impl="dense"),
    "blockwise": functools.partial(attend, mods=MODS, mask=masks.causal, impl="blockwise"),
    "two passes": functools.partial(attend, normalizer=normalizers.entmax(), impl="blockwise"),
    "selected, dense": functools.partial(selected, impl="dense"),
    "selected, blockwise": functools.partial(selected, impl="blockwise"),
    "recurrent": functools.partial(linear, impl="recurrent"),
    "chunked": functools.partial(linear, chunk=4, impl="chunked"),
    "delta": lambda q, k, v: linear(q, k, v, beta=jax.nn.sigmoid(q[..., 1]), impl="chunked"),
}
LOOPS = CALLS | {
    "additive scores": lambda q, k, v: attend(
        q, k, v, mods=(mods.additive(q, k.repeat(N // K, 2), q[0, 0]),)
    ),
    "rounds": functools.partial(sinkhorn_attention, rounds=2),
}


def inputs(B=B):
    return draws((B, T, N, H), (B, T, K, H), (B, T, K, H))


def value_and_gradients(call, *args):
    loss = lambda *args: jnp.sum(call(*args) ** 2)
    return call(*args), jax.grad(loss, argnums=(0, 1, 2))(*args)


@functools.cache
def expected(name):
    return jax.jit(functools.partial(value_and_gradients, CALLS[name]))(*inputs())


@pytest.mark.parametrize("name", CALLS)
def test_checks_of_numbers_find_nothing_and_change_nothing(name):
    call = CALLS[name]
    if "selected" in name:  # scores of blocks are infinite: always, never
        call = jax.jit(call)
    with jax.debug_nans(True), jax.debug_infs(True):
        got = value_and_gradients(call, *inputs())
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected(name)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dense", "selected, blockwise", "recurrent", "chunked"])
def test_without_jit_the_values_are_the_same(name):
    with jax.disable_jit():
        got = CALLS[name](*inputs())
    np.testing.assert_allclose(got, expected(name)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", sample([x for x in CALLS if x != "delta"], CALLS, pytest.mark.slow)
)
def test_nothing_leaks(name):
    with jax.checking_leaks():
        jax.make_jaxpr(functools.partial(value_and_gradients, CALLS[name]))(*inputs())


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_number_is_still_told(name):
    q, k, v = inputs()
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        CALLS[name](q.at[0, 3, 1, 2].set(jnp.nan), k, v)


def traced(op, **sizes):
    """The op and, where it gives floating-point numbers, its gradients, traced."""
    leaves, tree = jax.tree.flatten(op.sample(**sizes))
    at = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and x.dtype == float]

    def fn(xs):
        given = dict(zip(at, xs, strict=True))
        return op.fn(**jax.tree.unflatten(tree, [given.get(i, x) for i, x in enumerate(leaves)]))

    def loss(xs):
        return sum(jnp.sum(x) for x in jax.tree.leaves(fn(xs)) if x.dtype == float)

    xs = [leaves[i] for i in at]
    floats = any(x.dtype == float for x in jax.tree.leaves(jax.eval_shape(fn, xs)))
    return jax.make_jaxpr(jax.grad(loss) if floats else fn)(xs)


def test_every_op_is_traced_under_strict_promotion():
    broken = {}
    for op in OPS:
        try:
            with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
                traced(op)
        except Exception as error:
            broken[op.name] = str(error).partition("\n")[0]
    assert not broken


def test_every_op_takes_no_examples():
    broken = {}
    for op in OPS:
        if "B" not in op.letters:
            continue
        try:
            traced(op, B=0)
        except Exception as error:
            broken[op.name] = str(error).partition("\n")[0]
    assert not broken


@pytest.mark.parametrize("name", CALLS)
def test_no_examples_give_no_results(name):
    out, grads = value_and_gradients(CALLS[name], *inputs(B=0))
    assert out.shape == (0, T, N, H)
    assert [g.shape for g in grads] == [x.shape for x in inputs(B=0)]


def test_every_op_runs_a_short_text_with_its_defaults():
    """60 tokens, less than many a block."""
    broken = {}
    for op in OPS:
        # 7 x 7 agents want a grid of as many cells; keys without W have to be as wide as queries
        if op.name in ("agent_attention", "diff_qkv_attention"):
            continue
        defaults = {n: p.default for n, p in op.params.items() if p.default is not p.empty}
        try:
            traced_with(op, defaults)
        except Exception as error:
            broken[op.name] = str(error).partition("\n")[0]
    assert not broken


def traced_with(op, defaults):
    drawn = op.sample(T=60, S=60, draw=defaults)
    arrays = {n: x for n, x in drawn.items() if isinstance(x, jax.Array)}
    rest = {n: x for n, x in drawn.items() if n not in arrays}
    return jax.eval_shape(lambda arrays: op.fn(**arrays, **rest), arrays)


def test_eager_calls_compile_once():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event)
    )
    for name, call in LOOPS.items():
        q, k, v = inputs()
        for _ in range(2):
            call(q, k, v)
        compiled.clear()
        call(q, k, v)
        assert not [e for e in compiled if "backend_compile" in e], name
