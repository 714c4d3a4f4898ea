"""Quantized attention: oracles on NumPy's narrow types, outliers in keys, and scales of weights."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from attnjax.ops.softmax_core import (
    multi_head_attention,
    quantized_fp4,
    quantized_int8,
    sage3_attention,
    sage_attention,
)
from tests.helpers import draw, near, qkv
from tests.ops.plain import blend, cut_tail, kv, visible, weights

B, T, N, H = 2, 9, 4, 8


def int8(x, block, bits):
    out = np.zeros(x.shape)
    for b, n in np.ndindex(x.shape[0], x.shape[2]):
        for rows in cut_tail(x.shape[1], block):
            part = x[b, rows, n]
            scale = np.abs(part).max() / (2 ** (bits - 1) - 1)
            y = part / scale if scale else 0 * part
            out[b, rows, n] = np.trunc(y + 0.5 * np.where(y >= 0, 1, -1)) * scale
    return out


def fp4(x, exact=False):
    """A vector in groups of 16."""
    out = np.zeros(len(x))
    for i in cut_tail(len(x), 16):
        scale = np.abs(x[i]).max() / 6
        stored = float(np.float32(scale).astype(ml_dtypes.float8_e4m3fn))
        by = scale if exact else stored
        y = x[i] / by if by else 0 * x[i]
        out[i] = np.float32(y).astype(ml_dtypes.float4_e2m1fn).astype(float) * stored
    return out


def sage_attention_oracle(q, k, v, bits=8, block_q=128, block_k=64, allowed=None):
    k = k - k.mean(1, keepdims=True)
    return blend(weights(int8(q, block_q, bits), int8(k, block_k, bits), allowed), v)


def sage3_attention_oracle(q, k, v, block_q=128, allowed=None):
    (B, T, N, H), (S, K, D) = q.shape, v.shape[1:]
    k = k - k.mean(1, keepdims=True)
    mean = np.zeros(q.shape)
    for rows in cut_tail(T, block_q):
        mean[:, rows] = q[:, rows].sum(1, keepdims=True) / block_q
    values, out = np.zeros(v.shape), np.zeros((B, T, N, D))
    for b, g, d in np.ndindex(B, K, D):
        values[b, :, g, d] = fp4(v[b, :, g, d])
    for b, i, n in np.ndindex(B, T, N):
        js, g = visible(allowed, b, n, i, S), kv(q, k, n)
        if not js:
            continue
        asked, seen = fp4(q[b, i, n] - mean[b, i, n]), np.array([fp4(x) for x in k[b, :, g]])
        s = (seen @ asked + k[b, :, g] @ mean[b, i, n]) / np.sqrt(H)
        p = np.zeros(S)
        p[js] = 2688 * np.exp(s[js] - s[js].max())
        out[b, i, n] = fp4(p, exact=True) @ values[b, :, g] / p.sum()
    return out


def cosine(x, y):
    return float((x * y).sum() / jnp.sqrt((x * x).sum() * (y * y).sum()))


def test_the_mean_of_the_keys_takes_their_outliers():
    q, k, v = qkv(1, 64, 2, 16)
    k = k.at[..., 3].add(200.0)  # a channel that is large in all keys
    exact = multi_head_attention(q, k, v)
    assert cosine(sage_attention(q, k, v), exact) > 0.999
    rough = multi_head_attention(quantized_int8(q, 128), quantized_int8(k, 64), v)
    assert cosine(rough, exact) < 0.95
    errors = [jnp.abs(sage_attention(q, k, v, bits=n) - exact).max() for n in (4, 8, 16)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert cosine(sage3_attention(q, k, v), exact) > 0.95


def test_quantized_numbers_stay_and_gradients_pass():
    x = draw(B, 40, 3, 32)
    for once in (quantized_fp4(x, 1), quantized_fp4(x, -1), quantized_int8(x, 16)):
        assert jnp.abs(once - x).max() > 0
    once = quantized_int8(x, 16)
    near(quantized_int8(once, 16), once, 1e-6)
    grad = jax.grad(lambda x: (quantized_fp4(x, -1) * x).sum())(x)
    near(grad, x + quantized_fp4(x, -1))
    # two levels: weights in [0,1] by themselves have scales below what e4m3 resolves
    p = jnp.exp(-jnp.linspace(4, 12, 16 * 8)).reshape(1, -1)
    error = lambda scale: jnp.abs(quantized_fp4(scale * p, -1) / scale - p).sum()
    assert error(2688.0) < 0.5 * error(1.0)
