"""Gated KalmaNet: its oracle; the iteration step by step, and the regression that it solves."""

import functools

import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import gated_kalmanet
from tests.helpers import exact, near, orthonormal, run
from tests.laws.cases import BY_NAME
from tests.ops.plain import heads, unit


def gated_kalmanet_oracle(q, k, v, beta, log_decay, mix, ridge=0.02, iterations=None):
    """Solved exactly, or by so many steps of the iteration with each matrix."""
    (B, T, N, H), D = q.shape, v.shape[-1]
    q, k, v = unit(q), heads(unit(k), N), heads(v, N)
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        G, S = np.zeros((H, H)), np.zeros((H, D))
        for t in range(T):
            a, key = np.exp(log_decay[b, t, n]), beta[b, t, n] * k[b, t, n]
            G = a * G + np.outer(key, key)
            S = a * S + np.outer(key, beta[b, t, n] * v[b, t, n])
            size = np.linalg.norm(G)
            A, query = G + ridge * size * np.eye(H), q[b, t, n]
            x = (
                np.linalg.solve(A, query)
                if iterations is None
                else iterated(A, query, size * ridge, size * (1 + ridge), iterations)
            )
            out[b, t, n] = (mix[b, t, n] * x + (1 - mix[b, t, n]) * query) @ S
    return out


def iterated(A, b, low, high, count):
    """The Chebyshev semi-iteration by polynomials of the residual, without a recurrence."""
    values, vectors = np.linalg.eigh(A)
    T = np.polynomial.chebyshev.Chebyshev.basis(count + 1)
    at = lambda z: T((high + low - 2 * z) / (high - low))
    return vectors @ ((1 - at(values) / at(0.0)) / values * (vectors.T @ b))


def test_few_iterations_are_the_chebyshev_polynomial():
    args = BY_NAME["gated_kalmanet"].sample(seed=2)
    for count in (1, 4):
        given = {"ridge": 0.02, "iterations": count}
        want = gated_kalmanet_oracle(**exact(args) | given)
        near(run(gated_kalmanet, **args | given), want, 1e-4)


def test_a_key_is_answered_by_its_value_whatever_else_was_written():
    """With hardly a ridge it interpolates; linear attention mixes values of keys that overlap."""
    B, T, N, H = 1, 4, 1, 4
    k = orthonormal(B, T, H)[:, :, None] + 0.3
    v = jnp.asarray(np.random.default_rng(1).standard_normal((B, T, N, 2)))
    ones, still = jnp.ones((B, T, N)), jnp.zeros((B, T, N))
    q = jnp.broadcast_to(k[:, :1], k.shape)
    op = functools.partial(gated_kalmanet, q, k, v, ones, still)
    out = op(ones, ridge=1e-3, iterations=300)
    near(out[:, -1], v[:, 0], 3e-2)
    assert abs(op(still)[:, -1] - v[:, 0]).max() > 0.1
