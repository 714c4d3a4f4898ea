"""What members of the family share: strong decays, sums of weights, permutations, cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import features, linear_attend, normalizers
from attnjax.ops.linear_recurrent import (
    additive_attention,
    efficient_attention,
    efficient_scaled_attention,
    exponential_attention,
    exponential_attention_full,
    fast_attention,
    fast_attention_full,
    favor_attention,
    favor_attention_full,
    flow_attention,
    flow_attention_causal,
    hedgehog_attention,
    inline_attention,
    rala,
    taylor_shift,
    taylor_shift_direct,
)
from tests.helpers import draw, draws, near, qkv, weights_of
from tests.laws.cases import BY_NAME, expected

B, T, N, H = 2, 9, 4, 8


GATES = {  # the argument that holds the logarithm of a gate in each op
    "simple_gla": "log_decay",
    "gla": "log_decay",
    "hgrn2": "log_forget",
    "gated_delta_net": "log_decay",
    "rwkv6": "log_decay",
    "mlstm": "log_f",
}


@pytest.mark.parametrize("impl", ["recurrent", "chunked"])
@pytest.mark.parametrize("name", GATES)
def test_strong_decays_are_exact_and_finite(name, impl):
    """log_decay of -50 and of -inf, among others, in float32."""
    op, gate = BY_NAME[name], GATES[name]
    args = op.sample(seed=1, T=20, S=20)
    kind = np.random.default_rng(2).integers(0, 4, args[gate].shape)
    strong = jnp.where(kind == 0, -50.0, jnp.where(kind == 1, -jnp.inf, args[gate]))
    args = {**args, gate: strong.at[:, 4].set(-jnp.inf)}
    out, pull = jax.vjp(jax.jit(lambda args: op.fn(**args, impl=impl)), args)
    near(out, expected(op, args), 2e-5)
    assert all(np.isfinite(grad).all() for grad in pull(jnp.cos(out))[0].values())


TEMPERATURE = jnp.asarray([0.5, 1.0, 2.0, 4.0])
PROJECTION = draw(16, H, seed=7)
OPEN = jnp.ones((B, T, N, T))


# What normalizes its weights: their rows sum to one.
NORMALIZED = {
    "efficient": efficient_attention,
    "exponential": exponential_attention,
    "exponential full": exponential_attention_full,
    "fast": fast_attention,
    "fast full": fast_attention_full,
    "favor": lambda q, k, v: favor_attention(q, k, v, PROJECTION),
    "favor full": lambda q, k, v: favor_attention_full(q, k, v, PROJECTION),
    "inline": inline_attention,
    "inline of relu": lambda q, k, v: inline_attention(q, k, v, phi=features.relu),
    "rala": lambda q, k, v: rala(q, k, v, OPEN),
    "relu": lambda q, k, v: linear_attend(
        features.relu(q), features.relu(k), v, normalize=normalizers.divide, block=None
    ),
    "taylor": lambda q, k, v: taylor_shift(q, k, v, TEMPERATURE),
    "taylor direct": lambda q, k, v: taylor_shift_direct(q, k, v, TEMPERATURE),
}


POSITIVE = set(NORMALIZED) - {"inline", "inline of relu"}


@pytest.mark.parametrize("name", NORMALIZED)
def test_the_weights_of_a_query_sum_to_one(name):
    q, k, _ = qkv(B, T, N, H)
    weights = weights_of(NORMALIZED[name], q, k)
    near(weights.sum(-1), np.ones((B, N, T)))
    assert (weights.min() >= 0) == (name in POSITIVE)


# What reads all tokens without regard to their places.
FULL = {
    "additive": lambda q, k, v: additive_attention(q, k, v, PROJECTION.reshape(N, N, H)),
    "efficient": efficient_attention,
    "efficient scaled": efficient_scaled_attention,
    "exponential": exponential_attention_full,
    "fast": fast_attention_full,
    "favor": lambda q, k, v: favor_attention_full(q, k, v, PROJECTION),
    "flow": flow_attention,
    "inline": inline_attention,
    "rala": lambda q, k, v: rala(q, k, v, v),
    "taylor": lambda q, k, v: taylor_shift(q, k, v, TEMPERATURE),
    "taylor direct": lambda q, k, v: taylor_shift_direct(q, k, v, TEMPERATURE),
}


@pytest.mark.parametrize("name", FULL)
def test_permuted_tokens_permute_the_result(name):
    q, k, v = qkv(B, T, N, H)
    order = np.random.default_rng(0).permutation(T)
    near(FULL[name](q[:, order], k[:, order], v[:, order]), FULL[name](q, k, v)[:, order])


def largest(jaxpr):
    """Elements of the largest array that a jaxpr forms, those of its inner ones included."""
    sizes = [np.prod(v.aval.shape) for e in jaxpr.eqns for v in e.outvars if hasattr(v, "aval")]
    inner = [x for e in jaxpr.eqns for x in jax.tree.leaves(list(e.params.values()))]
    jaxprs = [getattr(x, "jaxpr", x) for x in inner if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
    return max([0, *sizes, *(largest(x) for x in jaxprs)])


@pytest.mark.parametrize("name", sorted(set(FULL) - {"taylor direct"}))
def test_no_array_grows_with_the_square_of_the_length(name):
    size = lambda T: largest(jax.make_jaxpr(FULL[name])(*qkv(B, T, N, H)).jaxpr)
    assert size(4096) <= 2.1 * size(2048)


@pytest.mark.parametrize(
    "op",
    [
        exponential_attention,
        exponential_attention_full,
        lambda q, k, v: favor_attention(q, k, v, PROJECTION),
        lambda q, k, v: favor_attention_full(q, k, v, PROJECTION),
        lambda q, k, v: hedgehog_attention(q, k, v, *draws((N, H, 3), (N, H, 3))),
        flow_attention,
        flow_attention_causal,
        efficient_attention,
    ],
)
def test_huge_exponents_neither_overflow_nor_vanish(op):
    q, k, v = qkv(B, T, N, H, scale=100.0)
    value, grad = jax.value_and_grad(lambda q, k, v: op(q, k, v).sum(), (0, 1, 2))(q, k, v)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grad)
    assert np.any(np.asarray(op(q, k, jnp.ones_like(v))) > 0)


@pytest.mark.parametrize("name", FULL)
def test_zeros_have_finite_gradients(name):
    zero = jnp.zeros((B, T, N, H))
    grad = jax.grad(lambda q, k, v: jnp.sum(jnp.sin(FULL[name](q, k, v))), (0, 1, 2))
    assert all(np.isfinite(g).all() for g in grad(zero, zero, zero))
