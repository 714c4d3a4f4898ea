"""MesaNet: its oracle; what it reads is a ridge regression; few steps are near it."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import mesa_net
from tests.helpers import draw, exact, near, qkv
from tests.ops.plain import kv, unit

B, T, N, H = 2, 9, 4, 8


def mesa_net_oracle(q, k, v, beta, log_decay, ridge, iterations=30):
    """The systems as they stand, solved directly."""
    (B, T, N, H), D, out = q.shape, v.shape[-1], []
    q, k = unit(q), unit(k)
    for b, n in np.ndindex(B, N):
        G, S, g = np.zeros((H, H)), np.zeros((H, D)), kv(q, k, n)
        for t in range(T):
            fade, key = np.exp(log_decay[b, t, n]), k[b, t, g]
            G = fade * G + beta[b, t, n] * np.outer(key, key)
            S = fade * S + beta[b, t, n] * np.outer(key, v[b, t, g])
            out.append(np.linalg.solve(G + np.diag(ridge[n]), q[b, t, n]) @ S)
    return np.reshape(out, (B, N, T, D)).transpose(0, 2, 1, 3)


def test_the_last_token_reads_a_ridge_regression():
    """By least squares over the keys, each a row, and a row for each channel's ridge."""
    with jax.enable_x64():
        q, k, v = qkv(1, 20, 1, H, D=3)
        beta = jnp.asarray(np.random.default_rng(3).uniform(0.1, 0.9, (1, 20, 1)))
        ridge = jnp.linspace(0.3, 1.0, H)[None]
        out = mesa_net(q, k, v, beta, jnp.zeros((1, 20, 1)), ridge)
        q, k, v, beta, ridge = exact((q[0, -1, 0], k[0, :, 0], v[0, :, 0], beta[0, :, 0], ridge[0]))
        weight = np.sqrt(beta)[:, None]
        rows = np.concatenate([weight * unit(k), np.diag(np.sqrt(ridge))])
        wanted = np.concatenate([weight * v, np.zeros((H, 3))])
        best = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        near(out[0, -1, 0], unit(q) @ best, 1e-9)


def test_more_iterations_come_nearer():
    q, k, v = qkv(B, 20, N, H)
    beta, ridge = jnp.full((B, 20, N), 0.9), jnp.full((N, H), 0.25)
    log_decay = -0.1 * jnp.abs(draw(B, 20, N, seed=3))
    few, some, many = (mesa_net(q, k, v, beta, log_decay, ridge, iterations=n) for n in (1, 5, 30))
    away = lambda x: jnp.abs(x - many).max()
    assert away(some) < 0.2 * away(few)
