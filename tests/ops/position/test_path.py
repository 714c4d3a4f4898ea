"""PaTH attention: its oracle, and reflections that undo each other."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.position import path_attention
from attnjax.ops.softmax_core.multi_head import causal_attention
from tests.helpers import draw, near, qkv
from tests.ops.plain import blend, causal, kv, weights


def path_attention_oracle(q, k, v, w, beta, block):
    T, H = q.shape[1], q.shape[-1]

    def score(b, n, i, j):
        g, x = kv(q, k, n), k[b, j, kv(q, k, n)]
        for l in range(j + 1, i + 1):
            x = x - beta[b, l, g] * w[b, l, g] * (w[b, l, g] @ x)
        return q[b, i, n] @ x / np.sqrt(H)

    return blend(weights(q, k, causal(T, T), logit=score), v)


def test_two_equal_reflections_undo_each_other():
    q, k, v = qkv(1, 9, 2, 4)
    w = draw(1, 9, 2, 4, seed=5)
    w = jnp.broadcast_to(w[:, :1], w.shape) / jnp.linalg.norm(w[:, :1], axis=-1, keepdims=True)
    beta = jnp.zeros((1, 9, 2)).at[:, 4:6].set(2.0)
    k = k.at[:, 4].set(0.0)  # the one key between them
    got = path_attention(q, k, v, w, beta, block=4)
    near(got[:, 6:], causal_attention(q, k, v)[:, 6:], 1e-5)
    assert np.abs(np.asarray(got - causal_attention(q, k, v))[:, 4]).max() > 0.1
