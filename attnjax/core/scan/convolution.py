"""Engine 4, convolutions along a sequence or a grid: short, depthwise, and long by FFT."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.numerics import aligned, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.typing import Array

# -------------------------------------------------------------------------------- convolutions


def depthwise(x: Array, kernel: Array, bias: Array | None = None, *, stride: int = 1) -> Array:
    """Each channel of x (B,...,W) with its own kernel (k,...,W) over the grid between, wide.

    out_i = sum_j kernel[j] x[stride * i + j - (k - 1) // 2] + bias (W,) on each axis, x zero beyond
    the grid.
    """
    # A sum over taps: on a CPU several times as fast as XLA's grouped convolution, of which, with a
    # batch split over one of several mesh axes, the gradient of the kernel is wrong by a whole
    # factor (jaxlib 0.10.2).
    x, kernel = wide(x), wide(kernel)
    around = [((k - 1) // 2, k // 2) for k in kernel.shape[:-1]]
    padded = jnp.pad(x, [(0, 0), *around, (0, 0)])
    spans = [(n - 1) // stride * stride + 1 for n in x.shape[1:-1]]

    def seen_by(tap: tuple[int, ...]) -> Array:
        cut = [slice(j, j + span, stride) for j, span in zip(tap, spans, strict=True)]
        return padded[(slice(None), *cut)]

    taps = (aligned(kernel[tap], x) * seen_by(tap) for tap in np.ndindex(kernel.shape[:-1]))
    out = functools.reduce(jnp.add, taps)
    return out if bias is None else out + aligned(bias, out)


def depthwise_of_heads(x: Array, kernel: Array, shape: Sequence[int]) -> Array:
    """`depthwise` of tokens x (B,T,N,D), the cells of a grid of `shape`, by kernel (k,...,N,D)."""
    B, _, N, D = x.shape
    image = x.reshape(B, *shape, N * D)
    return depthwise(image, kernel.reshape(*kernel.shape[:-2], N * D)).reshape(x.shape)


@on_any_mesh
def causal_conv(
    x: Array, kernel: Array, before: Array | None = None, documents: Array | None = None
) -> tuple[Array, Array]:
    """(y, the last k - 1 inputs), wide: y_t = sum_j kernel[j] x_{t-j}, the present by kernel[0].

    x (B,T,W), kernel (k,W); `before` (B,k-1,W) are the inputs before x, zeros if None; `documents`
    (B,k-1+T) are ids of `before` and x: what has another one counts as zero.
    """
    k, T = len(kernel), x.shape[1]
    x, kernel = _behind(before, wide(x), k - 1), wide(kernel)
    shifted = lambda x, j: x[:, k - 1 - j : k - 1 - j + T]

    def tap(j: int) -> Array:
        term = kernel[j][None, None] * shifted(x, j)
        if documents is None or j == 0:
            return term
        return jnp.where((shifted(documents, j) == shifted(documents, 0))[..., None], term, 0.0)

    return functools.reduce(jnp.add, map(tap, range(k))), x[:, T:]


@on_any_mesh
def long_conv(
    x: Array, kernel: Array, before: Array | None = None, documents: Array | None = None
) -> tuple[Array, Array]:
    """`causal_conv` for long kernels, by FFT in O(T log^2 T).

    A single FFT would carry rounding errors to the past.  So the second half of the tokens gets
    what the first half sends it by FFT, and each half its own part in the same way, down to a few
    tokens, which are multiplied out: no number depends on the future, and no gradient.

    `documents` (B,T), or (B,L-1+T) with `before`, are ids, all of one behind each other: of two
    halves only the document in which the first ends is in both.
    """
    T, L = x.shape[1], len(kernel)
    x, kernel = wide(x), wide(kernel)
    x = x if before is None else _behind(before, x, L - 1)
    (B, S, W), size = x.shape, _DIRECT << (-(-x.shape[1] // _DIRECT) - 1).bit_length()
    taps = jnp.pad(kernel[:size], ((0, max(size - L, 0)), (0, 0)))
    padded = jnp.pad(x, ((0, 0), (0, size - S), (0, 0)))
    ids = None if documents is None else jnp.pad(documents, ((0, 0), (0, size - S)), "edge")
    y = _near(padded, taps[:_DIRECT], ids)
    half = _DIRECT
    while half < size:
        halves = (B, size // (2 * half), 2, half)
        first, reaches = padded.reshape(*halves, W)[:, :, 0], None
        if ids is not None:
            of = ids.reshape(halves)
            same = (of == of[:, :, :1, -1:])[..., None]
            first, reaches = jnp.where(same[:, :, 0], first, 0.0), same[:, :, 1]
        response = jnp.fft.rfft(taps[: 2 * half], axis=0)
        sent = jnp.fft.rfft(first, 2 * half, axis=2) * response
        sent = jnp.fft.irfft(sent, 2 * half, axis=2)[:, :, half:]
        sent = sent if reaches is None else jnp.where(reaches, sent, 0.0)
        y = y.reshape(*halves, W) + jnp.stack([jnp.zeros_like(sent), sent], axis=2)
        half *= 2
    return y.reshape(B, size, W)[:, S - T : S], _behind(None, x, L - 1)[:, S:]


_DIRECT = 32  # tokens that one product convolves


def _near(x: Array, taps: Array, documents: Array | None) -> Array:
    """What the tokens of each run of `_DIRECT`, the length of taps, send each other: (B,S,W)."""
    (B, S, W), n = x.shape, len(taps)
    runs = x.reshape(B, S // n, n, W)
    if documents is not None:
        ids = jnp.pad(documents.reshape(B, S // n, n), ((0, 0), (0, 0), (n - 1, 0)))
        of_run = lambda x, ids: causal_conv(x, taps, None, ids)[0]
        return jax.vmap(of_run, in_axes=1, out_axes=1)(runs, ids).reshape(x.shape)
    lag = np.subtract.outer(np.arange(n), np.arange(n))
    near = jnp.where((lag >= 0)[..., None], taps[np.maximum(lag, 0)], 0.0)
    out = jnp.einsum("tsW,BnsW->BntW", near, runs, precision=lax.Precision.HIGHEST)
    return out.reshape(x.shape)


def _behind(before: Array | None, x: Array, n: int) -> Array:
    """x (B,T,W) behind the n inputs before it, zeros if None."""
    if before is None:
        return jnp.pad(x, ((0, 0), (n, 0), (0, 0)))
    return jnp.concatenate([before.astype(x.dtype), x], axis=1)
