"""Cottention: its oracles; lengths of q and k; weights; the state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.linear_recurrent import cottention, cottention_full
from tests.helpers import draw, near, qkv, weights_of
from tests.ops.plain import sigmoid, unit

B, T, N, H = 2, 9, 4, 8


def cottention_oracle(q, k, v, m):
    (B, T, N, _), (K, D) = q.shape, v.shape[2:]
    q, k, out = unit(q), unit(k), np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        for j in range(i + 1):
            cosine = q[b, i, n] @ k[b, j, n * K // N]
            out[b, i, n] += cosine * v[b, j, n * K // N] / (j + 1) ** sigmoid(m[n])
    return out


def cottention_full_oracle(q, k, v, m):
    (B, T, N, _), (S, K, D) = q.shape, v.shape[1:]
    q, k, out = unit(q), unit(k), np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        seen = sum(q[b, i, n] @ k[b, j, n * K // N] * v[b, j, n * K // N] for j in range(S))
        out[b, i, n] = seen / S ** sigmoid(m[n])
    return out


@pytest.mark.parametrize("op", [cottention, cottention_full])
def test_cottention_ignores_the_lengths_of_queries_and_keys(op):
    q, k, v = qkv(B, T, N, H)
    m = jnp.linspace(-2.0, 2.0, N)
    longer = jnp.exp(draw(B, T, N, 1, seed=3))
    near(op(longer * q, k / longer, v, m), op(q, k, v, m))
    assert np.isfinite(jax.grad(lambda q: op(q, k, v, m).sum())(0 * q)).all()


@pytest.mark.parametrize("op", [cottention, cottention_full])
def test_the_weights_of_cottention_are_cosines(op):
    q, k, _ = qkv(B, T, N, H)
    weights = weights_of(op, q, k, jnp.full(N, -100.0))  # a power of 0: no denominator
    assert (np.abs(weights) <= 1 + 1e-6).all() and (weights < 0).any()
    same = weights_of(op, q, q, jnp.full(N, -100.0))
    near(np.diagonal(same, axis1=2, axis2=3), np.ones((B, N, T)))
    learned = weights_of(op, q, k, jnp.zeros(N))
    place = np.arange(1, T + 1) if op is cottention else T
    near(learned, weights / np.sqrt(place))


def test_a_value_is_divided_by_the_power_of_its_own_place():
    """All cosines 1: 1 + 1/sqrt(2) at the second token, and the root of 3 joins later."""
    one, m = jnp.ones((1, 3, 1, 1)), jnp.zeros(1)
    near(cottention(one, one, one, m)[0, :, 0, 0], (1, 1.7071, 2.2845), 5e-5)


def test_the_state_of_cottention_counts_its_tokens_and_does_not_grow():
    q, k, v = qkv(B, T, N, H)
    m = jnp.zeros(N)
    sizes = set()
    state = None
    step = jax.jit(lambda *args, state: cottention(*args, m, state=state, return_state=True))
    for t in range(T):
        part = slice(t, t + 1)
        out, state = step(q[:, part], k[:, part], v[:, part], state=state)
        assert (state.count == t + 1).all()
        sizes.add(tuple(x.shape for x in jax.tree.leaves(state)))
    assert len(sizes) == 1
    near(out, cottention(q, k, v, m)[:, -1:])
