"""The selective state space model: its oracle; longer than a chunk."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import selective_ssm
from tests.helpers import draws, near

B = 2


def selective_ssm_oracle(x, dt, a, b, c):
    """As a sum over pairs of tokens."""
    out, so_far = np.zeros_like(x), np.cumsum(dt, axis=1)
    for t in range(x.shape[1]):
        for j in range(t + 1):
            kept = np.exp((so_far[:, t] - so_far[:, j])[..., None] * a)
            weight = (kept * (b[:, j] * c[:, t])[:, None]).sum(-1)
            out[:, t] += weight * dt[:, j] * x[:, j]
    return out


def test_a_selective_scan_in_chunks_is_the_recurrence():
    x, b, c = draws((B, 150, 3), (B, 150, 4), (B, 150, 4))
    dt, a = jax.nn.softplus(draws((B, 150, 3), seed=1)[0]), -jnp.exp(draws((3, 4), seed=2)[0])
    out, last = jax.jit(lambda *args: selective_ssm(*args, return_state=True))(x, dt, a, b, c)
    x, dt, a, b, c = map(np.asarray, (x, dt, a, b, c))
    h = np.zeros((B, 3, 4))
    for t in range(150):
        h = np.exp(dt[:, t, :, None] * a) * h + (dt * x)[:, t, :, None] * b[:, t, None]
        near(out[:, t], (h * c[:, t, None]).sum(-1), 1e-4)
    near(last.h, h, 1e-4)
