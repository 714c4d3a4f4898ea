"""FFTNet: tokens are mixed by a filter of their spectrum, which depends on their mean.

    fftnet          n = norm(x),  c = gelu(mean n W_c + b_c),  z = rfft(n) along the tokens
                    z' = z * f (1 + c F + F_0) + d + c D + D_0,    f, d of a head and frequency
                    out = x + irfft(z' gelu(|z'|) / (|z'| + 1e-6))
    fftnet_modrelu  c = gelu(mean x W_c + b_c),    z' = rfft(x) * (f + tanh(c F + F_0))
                    out = norm(x + irfft(z' relu(|z'| + b) / max(|z'|, 1e-3)))

with orthonormal transforms.  Channels of a head share its filter; a filter belongs to a number of
tokens T, with T // 2 + 1 frequencies.  O(T log T), all tokens in both directions.

Paper: Fein-Ashley et al., "The FFT Strikes Back: An Efficient Alternative to Self-Attention", 2025,
arXiv:2502.18394, section 3; code: jacobfa/fft, `fftnet_modules.py` before it was removed.
Limits: f = d = 0 without maps of c leaves x in fftnet; f = 1 without a map and b = 0 gives
norm(2 x) in fftnet_modrelu.
Differs: fftnet is the last form of the code, fftnet_modrelu an earlier one: the paper's formulas,
but that tanh bounds the change of the filter, and 1e-3 the divisor.  f begins as 1, d and b as
-0.1.  Versions of the paper from the fourth on add a branch of windows; the code is now that of
another method, SPECTRE.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from jax.nn import gelu, relu

from attnjax.core.numerics import Affine, einsum, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot
from attnjax.ops.attention_free.metaformer import Norm
from attnjax.typing import Array, Float

Tokens = Float[Array, "B T W"]
Filter = Float[Array, "N F"]
Spectrum = Array  # (B,F,N,H), complex


class Modulated(NamedTuple):
    """A number of each head and frequency, and the map from the mean token to its change."""

    base: Filter
    w: Float[Array, "W N F"]
    b: Filter

    def change(self, mean: Float[Array, "B W"]) -> Float[Array, "B F N 1"]:
        """What the mean token says."""
        said = einsum("BW,WNF->BNF", mean, self.w) + wide(self.b)[None]
        return said.swapaxes(1, 2)[..., None]


class FFTNet(NamedTuple):
    """Learned: f with F and F_0, d with D and D_0."""

    norm: Norm
    context: Annotated[Affine, "W W"]
    factor: Modulated
    shift: Modulated


class FFTNetModReLU(NamedTuple):
    """Learned: f with F and F_0, and b of modReLU."""

    context: Annotated[Affine, "W W"]
    factor: Modulated
    bias: Filter
    norm: Norm


@on_any_mesh
def fftnet(x: Tokens, weights: FFTNet) -> Tokens:
    """ValueError for a number of tokens that the filter is not of."""
    w = weights
    normed = w.norm.of_tokens(x)
    mean = gelu(w.context(normed.mean(1)), approximate=False)
    factor = _of_all(w.factor.base) * (1 + w.factor.change(mean))
    shift = _of_all(w.shift.base) + w.shift.change(mean)

    def filtered(spectrum: Spectrum) -> Spectrum:
        z = _times(spectrum, factor) + shift.astype(spectrum.dtype)
        size = jnp.abs(z)
        return _times(z, gelu(size, approximate=False) / (size + 1e-6))

    return (wide(x) + _on_spectrum(filtered, normed, w.factor.base)).astype(x.dtype)


@on_any_mesh
def fftnet_modrelu(x: Tokens, weights: FFTNetModReLU) -> Tokens:
    """ValueError for a number of tokens that the filter is not of."""
    w = weights
    mean = gelu(w.context(wide(x).mean(1)), approximate=False)
    factor = _of_all(w.factor.base) + jnp.tanh(w.factor.change(mean))

    def filtered(spectrum: Spectrum) -> Spectrum:
        z = _times(spectrum, factor)
        size = jnp.abs(z)
        return _times(z, relu(size + _of_all(w.bias)) / jnp.maximum(size, 1e-3))

    mixed = _on_spectrum(filtered, wide(x), w.factor.base)
    return w.norm.of_tokens(wide(x) + mixed).astype(x.dtype)


def _of_all(numbers: Filter) -> Float[Array, "1 F N 1"]:
    """The same for all examples and channels of a head."""
    return wide(numbers).T[None, :, :, None]


def _times(z: Spectrum, real: Array) -> Spectrum:
    return z * real.astype(z.dtype)


def _on_spectrum(change: Callable[[Spectrum], Spectrum], x: Tokens, like: Filter) -> Tokens:
    """What `change` makes of the spectra of x, heads apart."""
    (B, T, W), (N, F) = x.shape, like.shape
    if F != T // 2 + 1 or W % N:
        raise ValueError(
            f"weights: filters of N = {N} heads and F = {F} frequencies, expected a divisor of "
            f"W = {W} and T // 2 + 1 = {T // 2 + 1} frequencies"
        )
    heads = x.reshape(B, T, N, W // N).astype(jnp.promote_types(x.dtype, jnp.float32))
    spectrum = jnp.fft.rfft(heads, axis=1, norm="ortho")
    return jnp.fft.irfft(change(spectrum), T, axis=1, norm="ortho").reshape(x.shape)


def _of_length(slot: Slot) -> Any:
    """Weights with as many frequencies as T tokens have."""
    return replace(slot, sizes={**slot.sizes, "F": slot.sizes["T"] // 2 + 1}).tree()


def _adjusted(change: Callable[[Any], Any]) -> Draw:
    return Draw(lambda slot: change(_of_length(slot)))


def _constant(numbers: Modulated, base: float) -> Modulated:
    return Modulated(0 * numbers.base + base, 0 * numbers.w, 0 * numbers.b)


def _closed(weights: FFTNet) -> FFTNet:
    factor, shift = _constant(weights.factor, 0.0), _constant(weights.shift, 0.0)
    return weights._replace(factor=factor, shift=shift)


def _open(weights: FFTNetModReLU) -> FFTNetModReLU:
    return weights._replace(factor=_constant(weights.factor, 1.0), bias=0 * weights.bias)


def _unchanged(x: Tokens) -> Tokens:
    return x


def _twice(x: Tokens, weights: FFTNetModReLU) -> Tokens:
    return weights.norm.of_tokens(2 * x)


OPS = (
    Op(
        fftnet,
        papers=(181,),
        reads="all",
        draw={"weights": Draw(_of_length)},
        limits=(Limit("f = d = 0 leaves x", {"weights": _adjusted(_closed)}, _unchanged),),
    ),
    Op(
        fftnet_modrelu,
        papers=(181,),
        reads="all",
        draw={"weights": Draw(_of_length)},
        limits=(Limit("an open filter: norm(2 x)", {"weights": _adjusted(_open)}, _twice),),
    ),
)
