"""Normalized attention: its oracle, and what the moments of a row do not see."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.softmax_core import normalized_attention
from tests.helpers import draw, near, qkv, weights_of
from tests.ops.plain import blend, kv, weights

B, T, N, H = 2, 9, 4, 8


def normalized_attention_oracle(q, k, v, gain, bias, allowed=None):
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    score = lambda b, n, i, j: q[b, i, n] @ k[b, j, kv(q, k, n)]
    for n in range(q.shape[2]):  # a head alone, for each has a gain and a bias
        row = lambda s, n=n: gain[n] * (s - s.mean()) / (s.std() + 0.001) + bias[n]
        out[:, :, n] = blend(weights(q, k, allowed, row, score), v)[:, :, n]
    return out


def test_weights_have_mean_zero_and_deviation_one_wherever_scores_are():
    q, k, _ = qkv(B, T, N, H)
    gain, bias = jnp.ones(N), jnp.zeros(N)
    w = weights_of(normalized_attention, q, k, gain, bias)
    near(w.sum(-1), np.zeros((B, N, T)), 1e-4)
    near((w**2).mean(-1), np.ones((B, N, T)), 3e-3)
    far = jnp.concatenate([k, jnp.full((B, T, N, 1), 1.0)], -1)  # a hundred added to each score
    asked = jnp.concatenate([q, jnp.full((B, T, N, 1), 100.0)], -1)
    near(weights_of(normalized_attention, asked, far, gain, bias), w, 1e-4)


def test_equal_scores_give_the_bias_and_finite_gradients():
    k, v, gain, bias = draw(B, T, N, H), draw(B, T, N, H, seed=1), draw(N), draw(N, seed=2)
    fn = lambda q: normalized_attention(q, k, v, gain, bias)
    out, pull = jax.vjp(fn, jnp.zeros((B, T, N, H)))
    near(out, jnp.broadcast_to(bias[:, None] * v.sum(1, keepdims=True), out.shape))
    assert jnp.isfinite(pull(out)[0]).all()
