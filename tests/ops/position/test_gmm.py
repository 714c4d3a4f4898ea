"""GMM attention: its oracle, and means that never go back."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.position import gmm_attention
from tests.helpers import draw, run
from tests.ops.plain import softmax, visible


def gmm_attention_oracle(q, v, allowed=None):
    (B, T, M, _), S = q.shape, v.shape[1]
    out = np.zeros((B, T, v.shape[2]))
    softplus = lambda x: np.log1p(np.exp(x))
    for b in range(B):
        mean = np.zeros(M)
        for i in range(T):
            share, deviation = softmax(q[b, i, :, 0]), softplus(q[b, i, :, 2])
            mean = mean + softplus(q[b, i, :, 1])
            for j in visible(allowed, b, 0, i, S):
                p = np.exp(-((j - mean) ** 2) / (2 * deviation**2)) / np.sqrt(2 * np.pi)
                out[b, i] += (share * p / deviation).sum() * v[b, j]
    return out


def test_the_middle_of_the_weights_moves_ahead_by_the_steps():
    """Steps of about one place, deviations of about one."""
    q = 0.1 * draw(1, 12, 1, 3) + jnp.array([0.0, 0.54, 0.54])
    w = np.asarray(run(gmm_attention, q, jnp.eye(40)[None])[0])
    middle = (w * np.arange(40)).sum(-1) / w.sum(-1)
    assert (np.diff(middle) > 0.5).all() and abs(middle[-1] - 12) < 2
