"""Gated DeltaProduct: its oracle; two reflections rotate, which one key cannot."""

import jax.numpy as jnp
import numpy as np

from attnjax.core.recurrence.linear import State
from attnjax.ops.linear_recurrent import gated_delta_product
from tests.helpers import draw, near
from tests.ops.plain import unit

B, T, N, H = 2, 9, 4, 8


def gated_delta_product_oracle(q, k, v, beta, log_decay):
    """The state fades, then the keys of a token correct it in turn."""
    (B, T, N, H), (M, K, D), out = q.shape, v.shape[2:], []
    q, k = unit(q), unit(k)
    for b, n in np.ndindex(B, N):
        S, g = np.zeros((H, D)), n * K // N
        for t in range(T):
            S = np.exp(log_decay[b, t, n]) * S
            for m in range(M):
                key = k[b, t, m, g]
                S = S + beta[b, t, m, n] * np.outer(key, v[b, t, m, g] - key @ S)
            out.append(q[b, t, n] @ S)
    return np.reshape(out, (B, N, T, D)).transpose(0, 2, 1, 3)


def test_two_reflections_are_a_rotation():
    """Keys at an angle of 45 degrees, with beta = 2, turn a plane of the state by 90."""
    q, memory = jnp.ones((1, 1, 1, H)), draw(1, 1, H, H, seed=3)
    k = jnp.zeros((1, 1, 2, 1, H)).at[0, 0, 0, 0, 0].set(1.0).at[0, 0, 1, 0, :2].set(1.0)
    _, last = gated_delta_product(
        q, k, jnp.zeros((1, 1, 2, 1, H)), jnp.full((1, 1, 2, 1), 2.0), jnp.zeros((1, 1, 1)),
        state=State(memory), return_state=True,
    )  # fmt: skip
    turned = memory.at[0, 0, 0].set(-memory[0, 0, 1]).at[0, 0, 1].set(memory[0, 0, 0])
    near(last.memory, turned)
