"""Attention of quantized queries and keys, emulated: what SageAttention computes, in any dtype.

    quantized_int8(x)   scale round(x / scale), scale = max |x| / 127 over a block of tokens
    quantized_fp4(x)    scale e2m1(x / scale), scale = e4m3(max |x| / 6) over a group of 16 numbers
    sage_attention      softmax(int8(q) . int8(k - kbar) / sqrt(H)) v, blocks of 128 and 64 tokens
    sage3_attention     s_ij = (fp4(q - qbar) . fp4(k - kbar) + qbar . (k - kbar)) / sqrt(H)
                        out_i = sum_j fp4(2688 p_ij) fp4(v)_j / sum_j 2688 p_ij,
                        p_ij = exp(s_ij - max_j s_ij), 2688 = 448 6

kbar is the mean of k over all tokens, which no softmax sees; qbar that of q over a block of 128.
fp4 has groups of 16 along the head width of q and k, along the keys for v and p. e2m1 rounds to
0, .5, 1, 1.5, 2, 3, 4, 6, and e4m3 to eight bits.

Paper: Zhang et al., "SageAttention: Accurate 8-Bit Attention for Plug-and-play Inference
Acceleration", 2024, arXiv:2410.02367; Zhang et al., "SageAttention3: Microscaling FP4 Attention for
Inference and An Exploration of 8-Bit Training", 2025, arXiv:2505.11594.
Limits: more levels approach softmax attention.
Differs: emulation costs more than it saves, and shows errors alone: the kernels are not here.
SageAttention's p and v in float16 stay as they are. Gradients pass through rounding as if it were
not there. Means and scales see later keys: under a causal mask the future changes the result below
the error of quantization.
"""

import math

import jax
import jax.numpy as jnp

from attnjax.core import masks, mods, normalizers
from attnjax.core.numerics import clean, divide, finite, wide
from attnjax.core.pairwise.attend import Impl, attend, attention_scores
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V, Weights

_E2M1 = 6.0  # the largest numbers of the two formats
_E4M3 = 448.0


def quantized_int8(
    x: Float[Array, "B T N H"], block: int, *, bits: int = 8
) -> Float[Array, "B T N H"]:
    """x rounded to integers of `bits`, symmetric, one scale for `block` tokens of a head; wide."""
    x = wide(x)
    top = 2.0 ** (bits - 1) - 1
    scale = jnp.max(jnp.abs(_blocks(x, block)), axis=(-1, -2), keepdims=True) / top
    scale = jnp.repeat(scale[..., 0, 0].swapaxes(1, 2), block, axis=1)[:, : x.shape[1], :, None]
    y = divide(x, scale)
    return _passing(x, jnp.sign(y) * jnp.floor(jnp.abs(y) + 0.5) * scale)


def quantized_fp4(x: Float[Array, "..."], axis: int, group: int = 16) -> Float[Array, "..."]:
    """x in NVFP4: e2m1 numbers times a scale in e4m3 for each `group` along an axis; wide."""
    return _fp4(wide(x), axis, group, exact=False)


def _fp4(x: Array, axis: int, group: int, *, exact: bool) -> Array:
    """Numbers are divided by the rounded scale, or, if `exact`, by the one before rounding."""
    ordered = jnp.moveaxis(x, axis, -1)
    length = ordered.shape[-1]
    pad = [(0, 0)] * (x.ndim - 1) + [(0, -length % group)]
    parts = jnp.pad(ordered, pad).reshape(*ordered.shape[:-1], -(-length // group), group)
    scale = jnp.max(jnp.abs(parts), axis=-1, keepdims=True) / _E2M1
    stored = _e4m3(scale)
    y = divide(parts, scale if exact else stored)
    rounded = (_e2m1(y) * stored).reshape(*ordered.shape[:-1], parts.shape[-2] * group)[
        ..., :length
    ]
    return _passing(x, jnp.moveaxis(rounded, -1, axis))


def _e2m1(x: Array) -> Array:
    """Rounded to 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives, ties to even."""
    size = jnp.abs(x)
    step = jnp.where(size < 2, 0.5, jnp.where(size < 4, 1.0, 2.0))
    return jnp.sign(x) * jnp.minimum(jnp.round(size / step) * step, _E2M1)


def _e4m3(x: Array) -> Array:
    """x >= 0 rounded to three bits after the first, exponents from -6; at most 448."""
    _, exponent = jnp.frexp(x)
    step = jnp.ldexp(jnp.ones_like(x), jnp.maximum(exponent - 1, -6) - 3)
    return jnp.minimum(jnp.round(x / step) * step, _E4M3)


def _passing(x: Array, rounded: Array) -> Array:
    """The rounded numbers, with derivatives as if they were x."""
    return jax.lax.stop_gradient(rounded) + (x - jax.lax.stop_gradient(x))


def _blocks(x: Float[Array, "B T N H"], block: int) -> Float[Array, "B N G block H"]:
    """Blocks of tokens, the last one padded with zeros."""
    B, T, N, H = x.shape
    x = jnp.pad(x, ((0, 0), (0, -T % block), (0, 0), (0, 0)))
    return x.reshape(B, -(-T // block), block, N, H).transpose(0, 3, 1, 2, 4)


@on_any_mesh
def sage_attention(
    q: Q,
    k: K,
    v: V,
    *,
    bits: int = 8,
    block_q: int = 128,
    block_k: int = 64,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Scores of quantized queries and keys; all else as in softmax attention."""
    (q_clean, q_bad), (k_clean, k_bad) = clean(wide(q)), clean(wide(k))
    asked = quantized_int8(q_clean, block_q, bits=bits) + q_bad[..., None]
    centered = k_clean - k_clean.mean(axis=1, keepdims=True)
    keys = quantized_int8(centered, block_k, bits=bits) + k_bad[..., None]
    return attend(asked, keys, wide(v), mask=mask, impl=impl).astype(q.dtype)


@on_any_mesh
def sage3_attention(
    q: Q, k: K, v: V, *, block_q: int = 128, mask: masks.Mask = masks.everything
) -> Out:
    """All four operands in four bits; dense, for groups of weights run along the keys."""
    queries, keys = finite(q), finite(k)
    # In exact arithmetic no weight depends on the means, so they pass no derivatives.
    keys = keys - jax.lax.stop_gradient(keys.mean(axis=1, keepdims=True))
    means = _blocks(queries, block_q).sum(axis=-2) / block_q  # zeros of the padding count
    means = jnp.repeat(means.swapaxes(1, 2), block_q, axis=1)[:, : q.shape[1]]
    means = jax.lax.stop_gradient(means)
    asked = jnp.concatenate([quantized_fp4(queries - means, -1), means], axis=-1)
    seen = jnp.concatenate([quantized_fp4(keys, -1), keys], axis=-1)
    scores = attention_scores(asked, seen, mask=mask, scale=1.0 / math.sqrt(q.shape[-1]))
    values, bad = clean(wide(v))
    values = quantized_fp4(values, 1) + bad[..., None]
    given = mods.mod(_instead, pair=_quantized_weights(scores))
    terms = {"mods": (given,), "mask": mask, "normalizer": normalizers.identity}
    return attend(wide(q), wide(k), values, **terms).astype(q.dtype)


def _quantized_weights(scores: Weights) -> Weights:
    """Softmax with its numerators in four bits, scaled so that their scales use all of e4m3."""
    top = jnp.max(scores, axis=-1, keepdims=True)
    top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0.0, top))
    p = _E4M3 * _E2M1 * jnp.exp(scores - top)
    return divide(_fp4(p, -1, 16, exact=True), p.sum(axis=-1, keepdims=True))


def _instead(score: Array, given: Array) -> Array:
    return given


_ROUNDS = "derivatives pass through rounding, which differences see"
_EXEMPT = {"gradients": _ROUNDS, "jvp": _ROUNDS}

OPS = (
    Op(
        sage_attention,
        papers=(206,),
        reads="all",
        draw={"block_q": 4, "block_k": 2},
        limits=(Limit("24 bits: softmax attention", {"bits": 24}, multi_head_attention),),
        exempt=_EXEMPT | {"devices": "blocks and the mean are those of all tokens"},
    ),
    Op(sage3_attention, papers=(177,), reads="all", draw={"block_q": 4}, exempt=_EXEMPT),
)
