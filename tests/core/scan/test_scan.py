"""Diagonal scans and convolutions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.core.scan.convolution import causal_conv, depthwise, long_conv
from attnjax.core.scan.diagonal import linear_scan, scan_diagonal
from tests.helpers import draws, near

B, T, N, K, H, D = 2, 12, 4, 2, 6, 5


@pytest.mark.parametrize(("L", "length"), [(1, 33), (5, 100), (100, 100), (150, 70), (40, 1)])
def test_a_long_convolution_by_fft_is_the_direct_one(L, length):
    x, kernel, before = map(np.asarray, draws((B, length, 3), (L, 3), (B, L - 1, 3)))
    for given in (None, before):
        y, last = jax.jit(long_conv)(x, kernel, given)
        joined = np.concatenate([np.zeros_like(before) if given is None else before, x], axis=1)
        want = [sum(kernel[j] * joined[:, L - 1 + t - j] for j in range(L)) for t in range(length)]
        near(y, np.stack(want, axis=1), 2e-5)
        assert np.array_equal(last, joined[:, length:])


def test_a_long_convolution_stays_in_its_document():
    x, kernel = (np.random.default_rng(3).normal(size=s) for s in ((2, 131, 2), (131, 2)))
    ends = [(0, 3, 40, 41, 100, 131), (0, 64, 131)]
    ids = np.array([np.repeat(np.arange(len(e) - 1), np.diff(e)) for e in ends])
    with jax.enable_x64():
        y, _ = jax.jit(long_conv)(x, kernel, None, ids)
        for b, e in enumerate(ends):
            for start, stop in itertools.pairwise(e):
                near(y[b, start:stop], causal_conv(x[b : b + 1, start:stop], kernel)[0][0], 1e-12)
        behind = lambda x, none: np.concatenate([np.full_like(x[:, :30], none), x], axis=1)
        cut, _ = long_conv(x[:, 100:], kernel, behind(x[:, :100], 0), behind(ids, -1))
        near(cut, y[:, 100:], 1e-12)


def test_a_long_convolution_keeps_the_future_out():
    x, kernel = draws((B, 100, 3), (100, 3))
    y = jax.jit(lambda x: long_conv(x, kernel)[0])
    assert np.array_equal(y(x.at[:, 70:].set(1e6))[:, :70], y(x)[:, :70])
    grad = jax.grad(lambda x: jnp.sin(y(x)[:, :70]).sum())(x)
    assert not grad[:, 70:].any() and grad[:, :70].any()


@pytest.mark.parametrize("k", [1, 4])
def test_a_causal_convolution_goes_on_where_it_stopped(k):
    x, kernel = draws((B, T, 3), (k, 3))
    whole, last = causal_conv(x, kernel)
    padded = np.concatenate([np.zeros((B, k - 1, 3)), x], axis=1)
    flipped = np.asarray(kernel)[::-1]
    near(whole, np.stack([(padded[:, t : t + k] * flipped).sum(1) for t in range(T)], axis=1))
    first, state = causal_conv(x[:, :2], kernel)
    second, again = causal_conv(x[:, 2:], kernel, state)
    near((jnp.concatenate([first, second], axis=1), again), (whole, last))


@pytest.mark.parametrize("kernel_shape", [(3,), (4,), (3, 5), (3, 2, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_convolution_keeps_the_grid(kernel_shape, stride):
    grid = (5, 4, 3)[: len(kernel_shape)]
    x, kernel = map(np.asarray, draws((B, *grid, 3), (*kernel_shape, 3)))
    got = np.asarray(depthwise(jnp.asarray(x), jnp.asarray(kernel), stride=stride))
    assert got.shape[1:-1] == tuple(-(-n // stride) for n in grid)
    for at in np.ndindex(*got.shape[1:-1]):
        want = 0
        for j in np.ndindex(*kernel_shape):
            place = stride * np.array(at) + j - (np.array(kernel_shape) - 1) // 2
            if (place >= 0).all() and (place < grid).all():
                want += kernel[j] * x[(slice(None), *place)]
        near(got[(slice(None), *at)], want)


def test_a_linear_scan_is_its_recurrence():
    decay, add, x = draws((T, 2, 1), (T, 2, 3), (2, 3))
    got = linear_scan(decay, add, x)
    for t in range(T):
        x = decay[t] * x + add[t]
        near(got[t], x)


@pytest.mark.parametrize("chunk", [None, 1, 5, 12])
def test_a_diagonal_recurrence_in_chunks_is_the_recurrence_step_by_step(chunk):
    x, log_decay, start = draws((B, T, H), (B, T, H), (B, H))

    def run(x, log_decay, start, chunk=chunk):
        terms = lambda tokens: (jnp.exp(-jnp.abs(tokens[1])), tokens[0])
        return scan_diagonal(
            terms, lambda h, tokens: h * tokens[0], (x, log_decay), start, chunk=chunk
        )

    out, last = run(x, log_decay, start)
    h, want = np.asarray(start), []
    for t in range(T):
        h = np.exp(-np.abs(log_decay[:, t])) * h + x[:, t]
        want.append(h * x[:, t])
    near(out, np.stack(want, axis=1))
    near(last, h)
    loss = lambda chunk: lambda *args: sum(jnp.sum(jnp.sin(y)) for y in run(*args, chunk=chunk))
    grads = [jax.grad(loss(c), (0, 1, 2))(x, log_decay, start) for c in (chunk, None)]
    for got, expected in zip(*grads, strict=True):
        near(got, expected)
