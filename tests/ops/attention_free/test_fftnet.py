"""FFTNet in both forms: oracles by sums of cosines and sines; fixed filters, phases, lengths."""

import cmath
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.attention_free import fftnet, fftnet_modrelu
from tests.helpers import draw, near
from tests.laws.cases import BY_NAME
from tests.ops.plain import gelu


def _normed(u, norm):
    u = u - u.mean(-1, keepdims=True)
    return u / np.sqrt((u**2).mean(-1, keepdims=True) + 1e-5) * norm.scale + norm.shift


def _turn(T, k, t):
    return cmath.exp(2j * math.pi * k * t / T)


def _on_spectrum(x, N, change):
    """x (T,W) of one example; change(z, n, k) is what becomes of head n's z at frequency k."""
    (T, W), out = x.shape, np.zeros_like(x)
    for n, k in np.ndindex(N, T // 2 + 1):
        own = slice(n * W // N, (n + 1) * W // N)
        z = sum(x[t, own] * _turn(T, k, -t) for t in range(T)) / math.sqrt(T)
        z = change(z, n, k)
        times = 1 if k in (0, T - k) else 2  # it stands for its mirror image, too
        for t in range(T):
            out[t, own] += times * (z * _turn(T, k, t)).real / math.sqrt(T)
    return out


def _said(numbers, mean):
    return np.einsum("w,wnf->nf", mean, numbers.w) + numbers.b


def fftnet_oracle(x, weights):
    w, out = weights, np.zeros_like(x)
    for b in range(len(x)):
        normed = _normed(x[b], w.norm)
        mean = gelu(normed.mean(0) @ w.context.w + w.context.b)
        f = w.factor.base * (1 + _said(w.factor, mean))
        d = w.shift.base + _said(w.shift, mean)

        def change(z, n, k, f=f, d=d):
            z = z * f[n, k] + d[n, k]
            return z * gelu(abs(z)) / (abs(z) + 1e-6)

        out[b] = x[b] + _on_spectrum(normed, len(f), change)
    return out


def fftnet_modrelu_oracle(x, weights):
    w, out = weights, np.zeros_like(x)
    for b in range(len(x)):
        mean = gelu(x[b].mean(0) @ w.context.w + w.context.b)
        f = w.factor.base + np.tanh(_said(w.factor, mean))

        def change(z, n, k, f=f):
            z = z * f[n, k]
            return z * np.maximum(abs(z) + w.bias[n, k], 0) / np.maximum(abs(z), 1e-3)

        out[b] = _normed(x[b] + _on_spectrum(x[b], len(f), change), w.norm)
    return out


modrelu = jax.jit(fftnet_modrelu)
WEIGHTS = BY_NAME["fftnet_modrelu"].sample()["weights"]  # of nine tokens
FIXED = WEIGHTS._replace(
    factor=WEIGHTS.factor._replace(w=0 * WEIGHTS.factor.w, b=0 * WEIGHTS.factor.b)
)


def test_a_fixed_filter_is_a_circular_convolution_of_each_head():
    x = np.asarray(draw(1, 9, 8))
    kernel = np.fft.irfft(np.asarray(FIXED.factor.base), 9, axis=1)  # (N,T)
    mixed = sum(
        np.repeat(kernel[:, lag], 2) * np.roll(x, lag, axis=1) for lag in range(kernel.shape[1])
    )
    near(modrelu(x, FIXED._replace(bias=0 * FIXED.bias)), _normed(x + mixed, FIXED.norm), 1e-4)


def test_modrelu_takes_its_bias_off_magnitudes_and_turns_no_phase():
    """A cosine of size a has magnitude 1.5 a = sqrt(9) a / 2 at its frequency."""
    size = np.linspace(0.1, 2.0, 8)  # the first of them are below 0.5 / 1.5
    wave = np.cos(2 * np.pi * 2 * np.arange(9) / 9 + 0.3)[None, :, None] * size
    one = FIXED.factor._replace(base=jnp.ones_like(FIXED.factor.base))
    weights = FIXED._replace(factor=one, bias=jnp.full_like(FIXED.bias, -0.5))
    left = np.maximum(1.5 * size - 0.5, 0) / (1.5 * size)
    near(modrelu(jnp.asarray(wave), weights), _normed((1 + left) * wave, FIXED.norm), 1e-4)


def test_another_number_of_tokens_is_refused():
    weights = BY_NAME["fftnet"].sample()["weights"]
    with pytest.raises(ValueError, match=r"F = 5 frequencies, expected .* T // 2 \+ 1 = 6"):
        fftnet(draw(1, 10, 8), weights)
