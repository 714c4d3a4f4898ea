"""Arithmetic that every engine and leaf shares: dtypes, NaN, division, norms."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from attnjax.typing import Array, Float


def known(*sizes: object) -> bool:
    """Whether these are numbers, not dimensions that an exported program leaves open."""
    return all(isinstance(n, int) for n in sizes)


def working_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """float64 stays, everything else computes in float32; TypeError for floats of 8 bits."""
    if jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 2:
        raise TypeError(f"got dtype {dtype}, expected float16, bfloat16, float32 or float64")
    return jnp.promote_types(dtype, jnp.float32)


def clean(x: Array) -> tuple[Array, Array]:
    """x with zeros for NaN and infinities, and NaN for the rows that had one, zero for others."""
    # inf * 0 is NaN, and a sum keeps it; as a matrix product this costs next to nothing.
    bad = lax.stop_gradient(x) @ jnp.zeros(x.shape[-1], x.dtype)
    return jnp.where(jnp.isfinite(x), x, jnp.zeros((), x.dtype)), bad


def divide(values: Array, total: Array) -> Array:
    """values / total; zero where total is zero, in value and in gradient."""
    safe = jnp.where(total == 0.0, 1.0, total)
    return jnp.where(total == 0.0, 0.0, values / safe)


def divide_stably(values: Array, denominator: Array) -> Array:
    """values / denominator; zero, without gradient, where that is almost too small for a number.

    The derivative of x / y has 1 / y^2, which may overflow: x and y are first divided by y, held.
    """
    info = jnp.finfo(denominator.dtype)
    denominator = jnp.where(jnp.abs(denominator) < info.tiny / info.eps, 0.0, denominator)
    scale = lax.stop_gradient(divide(jnp.ones_like(denominator), denominator))
    return divide(values * scale, denominator * scale)


def wide(x: Array) -> Array:
    """x in float32; float64 stays float64."""
    return x.astype(working_dtype(x.dtype))


def aligned(weight: Array, x: Array) -> Array:
    """A weight of the last axes of x, wide, with an axis of one for each axis in front of them."""
    return wide(weight).reshape((1,) * (x.ndim - weight.ndim) + weight.shape)


def finite(x: Array) -> Array:
    """x in float32 or float64, with zeros for NaN and infinities.

    For operands computed from the q or k that the engine gets as well.  The engine spoils the rows
    that see a NaN of q or k itself; a NaN in an operand, though masked, would turn the zero
    gradients of other rows and of shared weights into NaN.
    """
    return jnp.where(jnp.isfinite(x), wide(x), 0.0)


def repeat_heads(x: Array, like: Array) -> Array:
    """x (B,S,K,...) with each head as often as query heads share it: as many as `like` (B,T,N,...).

    Raises ValueError where N is no multiple of K.
    """
    K, N = x.shape[2], like.shape[2]
    if N % K:
        raise ValueError(f"repeat_heads: x has K = {K} heads, expected a divisor of N = {N}")
    return jnp.repeat(x, N // K, axis=2)


def einsum(spec: str, *operands: Array) -> Array:
    """jnp.einsum of the operands, wide, in full precision on every device."""
    return jnp.einsum(spec, *map(wide, operands), precision=lax.Precision.HIGHEST)


def matmul(x: Array, w: Array) -> Array:
    """x w, wide, in full precision on every device."""
    return jnp.matmul(wide(x), wide(w), precision=lax.Precision.HIGHEST)


def project(x: Array, w: Array) -> Array:
    """x w over the last axis of x, wide; a row that holds a NaN or an infinity becomes NaN.

    Such a row puts no NaN into the gradient of w, nor into that of other rows: an engine that masks
    the row leaves all gradients finite.  x (...,W), w (W,R) -> (...,R).
    """
    x, bad = clean(wide(x))
    out = matmul(x, w)
    return out + bad[..., None].astype(out.dtype)


class Affine(NamedTuple):
    """x -> x w + b, wide."""

    w: Float[Array, "W D"]
    b: Float[Array, " D"]

    def __call__(self, x: Array) -> Array:
        y = matmul(x, self.w)
        return y + aligned(self.b, y)


def rms_norm(x: Array, eps: float = 1e-6) -> Array:
    """x divided by the root of its mean square over the last axis."""
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def layer_norm(x: Array, eps: float = 1e-6) -> Array:
    """x with mean 0 and mean square 1 over the last axis."""
    return rms_norm(x - jnp.mean(x, axis=-1, keepdims=True), eps)
