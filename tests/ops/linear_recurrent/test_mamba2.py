"""Mamba-2: its oracle; groups, the skip connection, steps of zero."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import mamba2, simple_gla
from tests.helpers import near
from tests.laws.cases import BY_NAME


def mamba2_oracle(x, dt, A, B, C, D):
    """The semiseparable matrix L * (C B^T), applied to dt x, head by head."""
    (batch, T, N, _), K = x.shape, B.shape[2]
    out = np.zeros_like(x)
    for b, t, n in np.ndindex(batch, T, N):
        for s in range(t + 1):
            L = np.exp(A[n] * dt[b, s + 1 : t + 1, n].sum())
            weight = L * (C[b, t, n * K // N] @ B[b, s, n * K // N])
            out[b, t, n] += weight * dt[b, s, n] * x[b, s, n]
        out[b, t, n] += D[n] * x[b, t, n]
    return out


def test_mamba2_heads_share_the_b_and_c_of_their_group():
    args = BY_NAME["mamba2"].sample(seed=2)
    groups = args["B"].shape[2]
    assert 1 < groups < args["x"].shape[2]
    each = {n: jnp.repeat(args[n], args["x"].shape[2] // groups, axis=2) for n in ("B", "C")}
    near(mamba2(**args), mamba2(**{**args, **each}))
    one = {n: args[n][:, :, :1] for n in ("B", "C")}
    same = {n: jnp.repeat(x, groups, axis=2) for n, x in one.items()}
    near(mamba2(**{**args, **one}), mamba2(**{**args, **same}))


def test_mamba2_without_a_skip_is_gated_linear_attention():
    args = BY_NAME["mamba2"].sample(seed=2, K=4)
    x, dt, A, b, c, D = (args[n] for n in ("x", "dt", "A", "B", "C", "D"))
    out = mamba2(x, dt, A, b, c)
    near(out, simple_gla(c, b, dt[..., None] * x, dt * A))
    near(mamba2(x, dt, A, b, c, D), out + D[:, None] * x)


def test_a_step_of_zero_leaves_the_state_of_mamba2():
    args = BY_NAME["mamba2"].sample(seed=2)
    _, before = mamba2(**args, return_state=True)
    still = {**args, "dt": 0 * args["dt"]}
    _, after = mamba2(**still, state=before, return_state=True)
    near(after.memory, before.memory)
