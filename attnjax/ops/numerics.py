"""Arithmetic that several leaves do before or after an engine."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.call import working_dtype
from attnjax.typing import Array, Float


def wide(x: Array) -> Array:
    """x in float32; float64 stays float64."""
    return x.astype(working_dtype(x.dtype))


def finite(x: Array) -> Array:
    """x in float32 or float64, with zeros for NaN and infinities.

    For operands computed from the q or k that the engine gets as well.  The engine spoils the rows
    that see a NaN of q or k itself; a NaN in an operand, though masked, would turn the zero
    gradients of other rows and of shared weights into NaN.
    """
    return jnp.where(jnp.isfinite(x), wide(x), 0.0)


class Affine(NamedTuple):
    """x -> x w + b, wide."""

    w: Float[Array, "W D"]
    b: Float[Array, " D"]

    def __call__(self, x: Array) -> Array:
        return jnp.matmul(wide(x), wide(self.w), precision=lax.Precision.HIGHEST) + wide(self.b)


def rms_norm(x: Array, eps: float = 1e-6) -> Array:
    """x divided by the root of its mean square over the last axis."""
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def layer_norm(x: Array, eps: float = 1e-6) -> Array:
    """x with mean 0 and mean square 1 over the last axis."""
    return rms_norm(x - jnp.mean(x, axis=-1, keepdims=True), eps)


def rotary(x: Array, positions: Array, base: float = 10000.0) -> Array:
    """x (B,T,N,H) turned by its positions (T,) or (B,T), wide: q . k then depends on differences.

    Channels h and h + H/2 are a plane that turns by position * base^(-2h/H) radians.
    Su et al. 2021, arXiv:2104.09864; the paper pairs neighboring channels, a fixed permutation.
    """
    half, odd = divmod(x.shape[-1], 2)
    if odd:
        raise ValueError(f"rotary: x has width H = {x.shape[-1]}, expected an even number")
    x = wide(x)
    rate = base ** (-np.arange(half) / half)
    angle = jnp.asarray(positions, x.dtype)[..., None, None] * jnp.asarray(rate, x.dtype)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


# -------------------------------------------------------------------------------- convolutions


def depthwise(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Each channel of x (B,...,W) with its own kernel (k,...,W) over the grid between, wide.

    out_i = sum_j kernel[j] x[stride * i + j - (k - 1) // 2] on each axis, x zero beyond the grid.
    """
    axes = "XYZ"[: kernel.ndim - 1]
    return lax.conv_general_dilated(
        wide(x),
        wide(kernel)[..., None, :],
        window_strides=(stride,) * len(axes),
        padding=[((k - 1) // 2, k // 2) for k in kernel.shape[:-1]],
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=kernel.shape[-1],
        precision=lax.Precision.HIGHEST,
    )


def causal_conv(x: Array, kernel: Array, before: Array | None = None) -> tuple[Array, Array]:
    """(y, the last k - 1 inputs), wide: y_t = sum_j kernel[j] x_{t-j}, the present by kernel[0].

    x (B,T,W), kernel (k,W); `before` (B,k-1,W) are the inputs before x, zeros if None.
    """
    k, T = len(kernel), x.shape[1]
    x, kernel = _behind(before, wide(x), k - 1), wide(kernel)
    taps = (kernel[j] * x[:, k - 1 - j : k - 1 - j + T] for j in range(k))
    return functools.reduce(jnp.add, taps), x[:, T:]


def long_conv(x: Array, kernel: Array, before: Array | None = None) -> tuple[Array, Array]:
    """`causal_conv` for long kernels, by FFT in O(T log^2 T).

    A single FFT would carry rounding errors to the past.  So the second half of the tokens gets
    what the first half sends it by FFT, and each half its own part in the same way, down to a few
    tokens, which are multiplied out: no number depends on the future, and no gradient.
    """
    T, L = x.shape[1], len(kernel)
    x, kernel = wide(x), wide(kernel)
    x = x if before is None else _behind(before, x, L - 1)
    (B, S, W), size = x.shape, _DIRECT << (-(-x.shape[1] // _DIRECT) - 1).bit_length()
    taps = jnp.pad(kernel[:size], ((0, max(size - L, 0)), (0, 0)))
    padded = jnp.pad(x, ((0, 0), (0, size - S), (0, 0)))
    lag = np.subtract.outer(np.arange(_DIRECT), np.arange(_DIRECT))
    near = jnp.where((lag >= 0)[..., None], taps[np.maximum(lag, 0)], 0.0)
    leaves = padded.reshape(B, -1, _DIRECT, W)
    y = jnp.einsum("tsW,BnsW->BntW", near, leaves, precision=lax.Precision.HIGHEST)
    half = _DIRECT
    while half < size:
        first = jnp.fft.rfft(padded.reshape(B, -1, 2, half, W)[:, :, 0], 2 * half, axis=2)
        response = jnp.fft.rfft(taps[: 2 * half], axis=0)
        sent = jnp.fft.irfft(first * response, 2 * half, axis=2)[:, :, half:]
        y = y.reshape(B, -1, 2, half, W) + jnp.stack([jnp.zeros_like(sent), sent], axis=2)
        half *= 2
    return y.reshape(B, size, W)[:, S - T : S], _behind(None, x, L - 1)[:, S:]


_DIRECT = 32  # tokens that one product convolves


def _behind(before: Array | None, x: Array, n: int) -> Array:
    """x (B,T,W) behind the n inputs before it, zeros if None."""
    if before is None:
        return jnp.pad(x, ((0, 0), (n, 0), (0, 0)))
    return jnp.concatenate([before.astype(x.dtype), x], axis=1)


# ---------------------------------------------------------------------------------- recurrences


def linear_scan(decay: Array, add: Array, start: Array) -> Array:
    """x_t = decay_t x_{t-1} + add_t along axis 0, from x_0 = start: all of them, in parallel."""

    def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return a[0] * b[0], b[0] * a[1] + b[1]

    total, x = lax.associative_scan(join, (decay, add))
    return x + total * start


# --------------------------------------------------------------------------- hashing, sampling


def gray_codes(x: Array, planes: Array) -> Array:
    """The bucket of each token of x (B,T,N,H), 0 .. 2^R - 1, for planes (H,R) through the origin.

    The sides of the planes are a Gray code, its place the bucket: neighbors differ in one side.
    """
    if planes.ndim != 2 or len(planes) != x.shape[-1] or planes.shape[1] > 16:
        raise ValueError(
            f"planes: shape {planes.shape}; expected (H,R) with H = {x.shape[-1]} and R <= 16"
        )
    x = finite(x)
    side = jnp.einsum("BTNH,HR->BTNR", x, planes.astype(x.dtype), precision="highest") > 0
    place = jnp.cumsum(side, axis=-1) % 2
    return (place << jnp.arange(planes.shape[1])[::-1]).sum(-1)


def sample_keys(draws: Array, density: Array, length: int) -> tuple[Array, Array]:
    """The m keys of each segment that numbers in [0,1) draw, and log 1/(m p): both (B,n m,K).

    Segments are `length` keys, the last may be shorter; p is the density (B,S,K), not negative,
    over its sum in the segment.  So sum 1/(m p) f(key) estimates the sum of f over a segment.
    """
    B, S, heads = density.shape
    d = finite(lax.stop_gradient(density))
    d = jnp.pad(d + jnp.finfo(d.dtype).tiny, ((0, 0), (0, -S % length), (0, 0)))
    d = jnp.moveaxis(d.reshape(B, -1, length, heads), 3, 2)
    ends = jnp.cumsum(d, axis=-1)  # (B,n,K,length)
    first = np.arange(0, S, length)[:, None, None]
    search = functools.partial(jnp.searchsorted, side="right")
    at = draws.astype(d.dtype) * ends[..., -1:]
    at = jnp.vectorize(search, signature="(s),(m)->(m)")(ends, at)
    at = jnp.minimum(at, np.minimum(length, S - first) - 1)
    log_weight = -jnp.log(len(draws) * jnp.take_along_axis(d, at, axis=-1) / ends[..., -1:])
    flat = lambda x: jnp.moveaxis(x, 3, 2).reshape(B, -1, heads)
    return flat(at + first), flat(log_weight)
