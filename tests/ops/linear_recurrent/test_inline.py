"""InLine attention: its oracle; collinear queries."""

import numpy as np

from attnjax import features, linear_attend, normalizers
from attnjax.ops.linear_recurrent import inline_attention
from tests.helpers import near, qkv, weights_of

B, T, N, H = 2, 9, 4, 8


def inline_attention_oracle(q, k, v):
    (B, T, N, _), (S, K, D) = q.shape, v.shape[1:]
    out = np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        s = np.array([q[b, i, n] @ k[b, j, n * K // N] for j in range(S)])
        out[b, i, n] = (s - s.mean() + 1 / S) @ v[b, :, n * K // N]
    return out


def test_inline_tells_collinear_queries_apart_and_division_does_not():
    def divided(q, k, v):
        q, k = features.relu(q), features.relu(k)
        return linear_attend(q, k, v, normalize=normalizers.divide, block=None)

    q, k, _ = qkv(B, T, N, H)
    near(weights_of(divided, 3.0 * q, k), weights_of(divided, q, k))
    for phi in (features.identity, features.relu):
        weights = weights_of(inline_attention, q, k, phi=phi)
        away = np.abs(weights_of(inline_attention, 3.0 * q, k, phi=phi) - weights)
        assert (away.max(-1) > 0.1).all()
