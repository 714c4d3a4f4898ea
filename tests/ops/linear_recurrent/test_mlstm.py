"""The mLSTM: its oracle; huge gates; its stabilizer leaves no trace."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import mlstm
from tests.helpers import draws, near, qkv
from tests.laws.cases import BY_NAME, expected
from tests.ops.plain import sums

B, T, N, H = 2, 9, 4, 8


def mlstm_oracle(q, k, v, log_i, log_f):
    """Without a stabilizer: sums over pairs in float64."""
    k = np.repeat(k, q.shape[2] // k.shape[2], axis=2) * np.exp(log_i)[..., None]
    v = np.repeat(v, q.shape[2] // v.shape[2], axis=2)
    k = k / np.sqrt(q.shape[-1])
    mass = sums(q, k, np.ones_like(v[..., :1]), log_f)
    return sums(q, k, v, log_f) / np.maximum(np.abs(mass), 1)


def test_mlstm_stays_finite_with_huge_input_gates():
    """Where exp(log_i) overflows the newest large gate decides: o -> v times the sign of q.k."""
    q, k, v = qkv(B, T, N, H)
    log_f = jnp.full((B, T, N), -0.1)
    square = lambda *args: (mlstm(*args) ** 2).sum()
    value_and_grad = jax.jit(jax.value_and_grad(square, argnums=tuple(range(5))))
    for size in (1e2, 1e4):
        (log_i,) = draws((B, T, N), seed=3)
        log_i = size * log_i
        value, grads = value_and_grad(q, k, v, log_i, log_f)
        assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads)
    rising = 1e3 * jnp.arange(T)[None, :, None] * jnp.ones((B, T, N))
    sign = jnp.sign(jnp.einsum("BTNH,BTNH->BTN", q, k))[..., None]
    out = jax.jit(mlstm)
    near(out(q, k, v, rising, log_f)[:, 1:], (sign * v)[:, 1:], 1e-4)
    assert not np.any(out(q, k, v, -rising - 1e3, log_f))


def test_mlstm_forgets_its_stabilizer_where_gates_are_ordinary():
    """exp(-m) in the place of 1 makes the result that of the plain formula, not of m."""
    op = BY_NAME["mlstm"]
    args = op.sample(seed=2)
    near(mlstm(**args), expected(op, args), 2e-5)
    lower = {**args, "log_i": args["log_i"] - 20.0}  # every division is by 1
    near(mlstm(**lower) * math.exp(20), expected(op, lower) * math.exp(20), 2e-5)
