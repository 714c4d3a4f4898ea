"""Lightning attention: its oracles; blocks, states, decays and the gated output."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import Chunked
from attnjax.core.recurrence.linear import State
from attnjax.ops.linear_recurrent import (
    gated_lightning_attention,
    lightning_attention,
    lightning_log_decays,
    lightning_printed_log_decays,
)
from tests.helpers import draws, near, qkv
from tests.ops.plain import rms, silu

B, T, N, H = 2, 9, 4, 8


def lightning_attention_oracle(q, k, v, log_decay):
    """(Q K^T * M) V."""
    (_, T, N, _), K = q.shape, k.shape[2]
    k, v = np.repeat(k, N // K, axis=2), np.repeat(v, N // K, axis=2)
    distance = np.arange(T)[:, None] - np.arange(T)
    M = np.exp(log_decay[:, None, None] * np.maximum(distance, 0)) * (distance >= 0)
    return np.einsum("nts,btnh,bsnh,bsnd->btnd", M, q, k, v)


def gated_lightning_attention_oracle(q, k, v, log_decay, gate):
    out = lightning_attention_oracle(silu(q), silu(k), v, log_decay)
    return rms(out.reshape(*out.shape[:2], -1)).reshape(out.shape) * gate


def test_lightning_attention_is_the_same_for_every_block():
    """Blocks that divide T and that do not, one that holds all, and (Q K^T * M) V."""
    with jax.enable_x64():
        q, k, v = (jnp.asarray(x, jnp.float64) for x in qkv(B, 13, N, H))
        log_decay = jnp.asarray(lightning_log_decays(N, 3, 12), jnp.float64)
        wanted = lightning_attention_oracle(*map(np.asarray, (q, k, v, log_decay)))
        for impl in (*(Chunked(n) for n in (1, 3, 4, 13, 64)), "recurrent", "parallel"):
            near(lightning_attention(q, k, v, log_decay, impl=impl), wanted, 1e-12)


def test_the_blocks_of_lightning_attention_are_those_of_its_algorithm():
    """Intra: (Q K^T * M) V.  Inter: Lam Q S.  S <- lam^C S + (lam^C Lam^-1 K)^T V."""
    q, k, v = (np.asarray(x, np.float64) for x in qkv(B, 12, N, H))
    lam, C = np.exp(np.asarray(lightning_log_decays(N, 2, 8), np.float64)), 4
    steps = np.arange(C)
    got = lightning_attention(q, k, v, jnp.log(lam), impl=Chunked(C))
    for b, n in np.ndindex(B, N):
        S = np.zeros((H, H))
        M = np.tril(lam[n] ** (steps[:, None] - steps))
        Lam = np.diag(lam[n] ** (steps + 1))
        for start in range(0, 12, C):
            Q, K, V = (x[b, start : start + C, n] for x in (q, k, v))
            out = (Q @ K.T * M) @ V + Lam @ Q @ S
            S = lam[n] ** C * S + (lam[n] ** C * np.linalg.inv(Lam) @ K).T @ V
            near(got[b, start : start + C, n], out, 2e-5)


def test_states_of_two_halves_add_up_to_that_of_the_whole():
    """What devices exchange: lam^T of the first state, plus the second's, which began at zero."""
    q, k, v = qkv(B, 12, N, H)
    log_decay = lightning_log_decays(N, 2, 8)
    run = lambda part, **o: lightning_attention(
        q[:, part], k[:, part], v[:, part], log_decay, return_state=True, **o
    )
    first, second = slice(0, 7), slice(7, 12)
    whole, last = run(slice(None))
    _, a = run(first)
    _, b = run(second)
    memory = jnp.exp(5 * log_decay)[:, None, None] * a.memory + b.memory
    near(memory, last.memory)
    near(run(second, state=State(a.memory))[0], whole[:, second])


def test_released_decays_and_the_papers():
    near(lightning_log_decays(4, 0, 4), np.array([-0.25, -0.0625, -0.015625, -0.00390625]), 2e-5)
    near(lightning_printed_log_decays(4, 0, 4), np.array([0.0, -2.0, -4.0, -6.0]))
    decays = np.array([lightning_log_decays(8, layer, 12) for layer in range(12)])
    assert (decays < 0).all()
    assert (np.diff(decays, axis=1) > 0).all()  # later heads look farther
    assert (np.diff(decays, axis=0) > 0).all()  # and so do later layers
    printed = np.exp(lightning_printed_log_decays(8, 3, 12))
    near(printed[5], math.exp(-(8 * 5 / 8) * (1 - 3 / 12)), 1e-6)


def test_the_gated_output_is_normed_over_all_heads():
    q, k, v = qkv(B, T, N, H)
    log_decay, ones = lightning_log_decays(N, 0, 4), jnp.ones_like(v)
    out = gated_lightning_attention(q, k, v, log_decay, ones)
    near(jnp.square(out).mean((2, 3)), jnp.ones((B, T)), 1e-4)
    (gate,) = draws(v.shape, seed=7)
    near(gated_lightning_attention(q, k, v, log_decay, gate), out * gate)
    near(gated_lightning_attention(q, k, 5.0 * v, log_decay, gate), out * gate, 1e-4)
    silent = gated_lightning_attention(q, k, 0 * v, log_decay, gate)
    assert not np.any(silent)
