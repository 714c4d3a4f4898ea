"""ReLU attention and local concentration: their oracles; queries without a positive key."""

import math

import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import local_linear_attention
from tests.helpers import near, qkv
from tests.ops.plain import depthwise

B, T, N, H = 2, 9, 4, 8


def local_linear_attention_oracle(q, k, v, temperature, least=100.0):
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for b, i, n in np.ndindex(q.shape[:3]):
        keys, values = k[b, :, n * k.shape[2] // q.shape[2]], v[b, :, n * v.shape[2] // q.shape[2]]
        w = np.array([np.maximum(q[b, i, n], 0) @ np.maximum(key, 0) for key in keys])
        out[b, i, n] = temperature[n] * (w @ values) / max(w.sum(), least)
    return out


def local_concentration_oracle(x, local, shape):
    gelu = np.vectorize(lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))))
    out = np.zeros_like(x)
    for b in range(len(x)):
        hidden = gelu(depthwise(x[b].reshape(*shape, -1), local.first) + local.first_bias)
        hidden = local.scale * hidden + local.shift
        out[b] = (depthwise(hidden, local.second) + local.second_bias).reshape(x[b].shape)
    return out


def test_a_small_divisor_is_held_up():
    one = jnp.ones((1, 2, 1, 1))
    run = lambda q: local_linear_attention(q, one, 3 * one, jnp.full(1, 0.5))
    near(run(10 * one), 0.3 * one)  # 20 is less than 100: 0.5 * 60 / 100
    near(run(200 * one), 1.5 * one)


def test_relu_weights_are_zero_for_a_query_without_a_positive_key():
    q, k, v = qkv(B, T, N, H)
    out = local_linear_attention(q.at[0, 2].set(-1.0), k, v, jnp.ones(N), least=0.0)
    assert not np.any(out[0, 2]) and np.all(np.any(out[1], -1))
