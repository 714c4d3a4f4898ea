"""Efficient additive attention: its oracle; order, lengths, cost."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.attention_free import swift_additive_attention
from tests.helpers import draw, near
from tests.laws.cases import BY_NAME
from tests.ops.linear_recurrent.test_family import largest
from tests.ops.plain import unit


def swift_additive_attention_oracle(x, weights):
    w, out = weights, np.zeros_like(x)
    for b in range(len(x)):
        q, k = unit(x[b] @ w.query.w + w.query.b), unit(x[b] @ w.key.w + w.key.b)
        a = unit(np.array([row @ w.pool for row in q]))
        g = sum(a[t] * q[t] for t in range(len(q)))
        for t in range(len(q)):
            mixed = (g * k[t]) @ w.mix.w + w.mix.b + q[t]
            out[b, t] = mixed @ w.out.w + w.out.b
    return out


attention = jax.jit(swift_additive_attention)
WEIGHTS = BY_NAME["swift_additive_attention"].sample()["weights"]


def test_permuted_tokens_permute_the_result():
    x, order = draw(2, 9, 8), np.random.default_rng(0).permutation(9)
    near(attention(x[:, order], WEIGHTS), attention(x, WEIGHTS)[:, order])


def test_the_size_of_w_does_not_count_and_its_sign_does():
    x, scaled = draw(2, 9, 8), lambda c: WEIGHTS._replace(pool=c * WEIGHTS.pool)
    near(attention(x, scaled(30.0)), attention(x, WEIGHTS))
    turned = attention(x, scaled(-1.0)) + attention(x, WEIGHTS)
    near(turned / 2, attention(x, scaled(0.0)))  # g is turned, and the rest is affine in g


def test_equal_tokens_add_up():
    """Weights of T equal tokens are 1 / sqrt(T), of length one: g grows as sqrt(T)."""
    x = draw(1, 1, 8)
    none = attention(x, WEIGHTS._replace(pool=0 * WEIGHTS.pool))
    share = lambda T: attention(jnp.broadcast_to(x, (1, T, 8)), WEIGHTS)[:, :1] - none
    near(share(9), 3 * share(1), 1e-4)


def test_no_array_grows_with_the_square_of_the_length():
    trace = lambda T: jax.make_jaxpr(swift_additive_attention)(jnp.zeros((1, T, 8)), WEIGHTS)
    assert largest(trace(4096).jaxpr) <= 2.1 * largest(trace(2048).jaxpr)


def test_a_token_of_zeros_has_a_finite_gradient():
    bare = WEIGHTS._replace(query=WEIGHTS.query._replace(b=0 * WEIGHTS.query.b))
    grad = jax.grad(lambda x: jnp.sin(swift_additive_attention(x, bare)).sum())
    assert np.isfinite(grad(draw(1, 4, 8).at[0, 1].set(0.0))).all()
