"""RWKV-7: its oracle; what it erases, it reads before the state fades; it can swap two entries."""

import jax.numpy as jnp
import numpy as np

from attnjax.core.recurrence.linear import State
from attnjax.ops.linear_recurrent import rwkv7
from tests.helpers import draws, near, qkv
from tests.ops.plain import kv, unit

B, T, N, H = 2, 9, 4, 8


def rwkv7_oracle(q, k, v, log_decay, removal, rate):
    """With the transition as a matrix, values by keys: S (diag(w) - c^T (a c)) + v^T k."""
    (B, T, N, H), D, out = q.shape, v.shape[-1], []
    for b, n in np.ndindex(B, N):
        S, g = np.zeros((D, H)), kv(q, k, n)
        for t in range(T):
            c = unit(removal[b, t, n])[None]
            transition = np.diag(np.exp(log_decay[b, t, n])) - c.T @ (rate[b, t, n] * c)
            S = S @ transition + np.outer(v[b, t, g], k[b, t, g])
            out.append(S @ q[b, t, n])
    return np.reshape(out, (B, N, T, D)).transpose(0, 2, 1, 3)


def one_step(memory, k, v, log_decay, removal, rate):
    q = jnp.zeros_like(k)
    return rwkv7(
        q, k, v, log_decay, removal, rate, state=State(memory), return_state=True
    )[1].memory  # fmt: skip


def test_what_is_erased_is_read_before_the_state_fades():
    q, k, v = qkv(B, 1, N, H)
    memory, removal = draws((B, N, H, H), (B, 1, N, H), seed=3)
    forgotten, ones = jnp.full((B, 1, N, H), -jnp.inf), jnp.ones((B, 1, N, H))
    c = removal[:, 0] / jnp.linalg.norm(removal[:, 0], axis=-1, keepdims=True)
    left = -c[..., None] * jnp.einsum("BNH,BNHD->BND", c, memory)[..., None, :]
    got = one_step(memory, 0 * k, v, forgotten, removal, ones)
    near(got, left)


def test_two_entries_swap_in_one_step():
    """A transition I - 2 c c^T with c = (e_0 - e_1)/sqrt 2, which state tracking needs."""
    _, k, v = qkv(B, 1, N, H)
    (memory,) = draws((B, N, H, H), seed=3)
    removal = jnp.zeros((B, 1, N, H)).at[..., 0].set(1.0).at[..., 1].set(-1.0)
    twice = jnp.full((B, 1, N, H), 2.0)
    got = one_step(memory, 0 * k, v, jnp.zeros((B, 1, N, H)), removal, twice)
    near(got, memory[:, :, np.array([1, 0, *range(2, H)])])
