"""Selective self-attention: the oracle, sharper rows, and a gated value that keeps its weight."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.softmax_core import position_temperature, selective_self_attention
from tests.helpers import near, qkv, weights_of
from tests.ops.plain import blend, causal, kv, weights

B, T, N, H = 2, 9, 4, 8


def selective_self_attention_oracle(q, k, v, tau, gate, allowed=None):
    allowed = causal(q.shape[1], k.shape[1]) if allowed is None else allowed
    score = lambda b, n, i, j: tau[b, i, n] * q[b, i, n] @ k[b, j, kv(q, k, n)] / np.sqrt(H)
    return blend(weights(q, k, allowed, logit=score), gate[..., None] * v)


def test_temperatures_sharpen_and_gates_silence():
    q, k, v = qkv(B, T, N, H)
    one = jnp.ones((B, T, N))
    plain = lambda q, k, v, tau: selective_self_attention(q, k, v, tau, one)
    w = [np.clip(weights_of(plain, q, k, tau * one), 1e-30, 1) for tau in (1.0, 3.0)]
    entropy = [-(x * np.log(x)).sum(-1)[..., 1:] for x in w]
    assert (entropy[1] < entropy[0]).all()
    near(selective_self_attention(2 * q, k, v, one, one), plain(q, k, v, 2 * one))
    silent = one.at[:, 3].set(0.0)
    near(selective_self_attention(q, k, v, one, silent), plain(q, k, v.at[:, 3].set(0.0), one))


def test_the_first_position_has_temperature_one():
    c = np.exp(-np.exp(1.5))
    near(position_temperature(4, c), 1 + c * np.log([1, 2, 3, 4]))
    q, k, v = qkv(1, 4, N, H)
    tau = jnp.broadcast_to(position_temperature(4, 0.5)[None, :, None], (1, 4, N))
    got = selective_self_attention(q, k, v, tau, jnp.ones((1, 4, N)))
    near(got[:, 0], v[:, 0])
