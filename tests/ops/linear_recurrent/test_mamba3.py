"""Mamba-3: its oracles; ranks, second order, parity by turning, padding between two tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.linear_recurrent import mamba3, mamba3_mimo
from tests.helpers import near, run
from tests.laws.cases import BY_NAME
from tests.ops.plain import heads


def turn(x, phi):
    """The planes of (2r, 2r + 1) as complex numbers."""
    R = len(phi)
    out = x.copy()
    z = (x[: 2 * R : 2] + 1j * x[1 : 2 * R : 2]) * np.exp(1j * phi)
    out[: 2 * R : 2], out[1 : 2 * R : 2] = z.real, z.imag
    return out


def mamba3_oracle(q, k, v, log_decay, dt, trap, angle):
    q, k, v = (x[:, :, :, None] for x in (q, k, v))
    return mamba3_mimo_oracle(q, k, v, log_decay, dt, trap, angle)[:, :, :, 0]


def mamba3_mimo_oracle(q, k, v, log_decay, dt, trap, angle):
    (B, T, N, M, H), D = q.shape, v.shape[-1]
    k, v = heads(k, N), heads(v, N)
    out = np.zeros((B, T, N, M, D))
    for b, n in np.ndindex(B, N):
        S, phi, before = np.zeros((H, D)), np.zeros(angle.shape[-1]), np.zeros((H, D))
        for t in range(T):
            a, step, part = np.exp(log_decay[b, t, n]), dt[b, t, n], trap[b, t, n]
            phi = phi + step * angle[b, t, n]
            now = sum(np.outer(turn(k[b, t, n, m], phi), v[b, t, n, m]) for m in range(M))
            S = a * S + a * (1 - part) * step * before + part * step * now
            before = now
            out[b, t, n] = [turn(q[b, t, n, m], phi) @ S for m in range(M)]
    return out


def test_one_rank_of_mimo_is_mamba3():
    args = BY_NAME["mamba3"].sample(seed=2)
    ranked = {n: x[:, :, :, None] if n in "qkv" else x for n, x in args.items()}
    near(run(mamba3_mimo, **ranked)[:, :, :, 0], run(mamba3, **args))


@pytest.mark.parametrize(("trap", "order"), [(1.0, 1), (0.5, 2)])
def test_the_trapezoid_is_of_second_order(trap, order):
    """h' = -h + sin t from 0, whose solution is (sin t - cos t + exp(-t)) / 2."""
    errors = []
    for T in (64, 128):
        step = 4.0 / T
        t = step * jnp.arange(1, T + 1)
        shape = (1, T, 1)
        ones = jnp.ones((*shape, 2))
        v = jnp.broadcast_to(jnp.sin(t)[None, :, None, None], (1, T, 1, 1))
        still = jnp.zeros((*shape, 1))
        numbers = [jnp.full(shape, x) for x in (-step, step, trap)]
        h = run(mamba3, ones, ones / 2, v, *numbers, still)
        errors.append(abs(h[0, -1, 0, 0] - (np.sin(4) - np.cos(4) + np.exp(-4)) / 2))
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.2


def test_a_state_that_turns_counts_ones_modulo_two():
    bits = np.random.default_rng(0).integers(0, 2, 30)
    bits[0] = 1
    shape = (1, 30, 1)
    first = (np.arange(30) == 0).reshape(*shape, 1)
    up = jnp.broadcast_to(jnp.array([1.0, 0.0]), (*shape, 2))
    ones, still = jnp.ones(shape), jnp.zeros(shape)
    angle = jnp.asarray(np.pi * bits.reshape(*shape, 1))
    out = run(mamba3, up, up, jnp.asarray(first, float), still, ones, ones, angle)[0, :, 0, 0]
    near(out, (-1.0) ** (np.cumsum(bits) - 1))


def test_padding_neither_turns_nor_is_a_token_before():
    args = BY_NAME["mamba3"].sample(seed=3)
    cut = lambda x: jnp.concatenate([x[:, :4], jnp.full_like(x[:, :2], jnp.nan), x[:, 4:]], 1)
    ids = np.array([0] * 4 + [-1] * 2 + [0] * 5)
    padded = run(mamba3, **{n: cut(x) for n, x in args.items()}, documents=ids)
    without = args | {"trap": args["trap"].at[:, 4].set(1.0)}
    scale = args["trap"][:, 4, :, None]  # what is left of the token's own key, at the same dt
    dt = args["dt"].at[:, 4].multiply(scale[..., 0])
    without["angle"] = args["angle"].at[:, 4].divide(scale)
    want = run(mamba3, **without | {"dt": dt})
    near(padded[:, np.r_[0:4, 6:7]], want[:, :5])
    assert not np.any(padded[:, 4:6])
