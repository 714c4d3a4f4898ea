"""Mega's multi-dimensional damped EMA: M moving averages of each channel, summed.

    h_t = alpha beta x_t + (1 - alpha delta) h_{t-1},    for each channel
    y_t = eta . h_t / sqrt(M) + omega x_t
    y_t = sum_{j <= t} kernel_{t-j} x_j + omega x_t,
    kernel_i = eta . (1 - alpha delta)^i alpha beta / sqrt(M)

Paper: Ma et al., "Mega: Moving Average Equipped Gated Attention", 2022, arXiv:2209.10655,
section 3.1; code: facebookresearch/mega.
Limits: alpha = beta = eta = 1 with M = 1, omega = 0 and delta = 1 is x itself, and with delta = 0
its sum.
Differs: the paper prints y = eta . h, `as_printed(weights)` here; the released code, which made its
numbers, divides by sqrt(M) and adds omega x. Its module ends with silu, which `mega` applies.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import aligned, einsum, wide
from attnjax.core.recurrence.documents import Documents, compact, packed
from attnjax.core.scan.convolution import long_conv
from attnjax.core.scan.diagonal import scan_diagonal
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float, Int

X = Float[Array, "B T W"]


class EMA(NamedTuple):
    """Learned: alpha and delta in (0, 1), beta spreads a channel, eta collects it, omega adds x."""

    alpha: Float[Array, "W M"]
    delta: Float[Array, "W M"]
    beta: Float[Array, "W M"]
    eta: Float[Array, "W M"]
    omega: Float[Array, " W"]


def as_printed(weights: EMA) -> EMA:
    """Weights with which y = eta . h, as the paper prints it, for the eta given."""
    eta = weights.eta * math.sqrt(weights.eta.shape[1])
    return weights._replace(eta=eta, omega=jnp.zeros_like(weights.omega))


class EMAState(NamedTuple):
    """h after the last token, and where there are documents the id of its own."""

    h: Float[Array, "B W M"]
    document: Int[Array, " B"] | None = None


@on_any_mesh
def damped_ema(
    x: X,
    weights: EMA,
    *,
    documents: Documents | None = None,
    state: EMAState | None = None,
    return_state: bool = False,
) -> Any:
    """The recurrence by a parallel scan, O(T W M) memory.

    `documents` are ids of packed documents, as `linear_attend` takes them.
    """
    alpha, delta, beta, eta, omega = _scaled(weights)
    decay = 1 - alpha * delta
    B, T, W = x.shape
    of = packed(documents, (B, T), None if state is None else state.document)
    x = x if of is None else of.without_padding(x)
    decays = jnp.broadcast_to(decay, (1, T, *decay.shape))
    if of is not None:
        decays = jnp.where(of.real[..., None, None], decays, 1.0)
        decays = jnp.where(of.starts[..., None, None], 0.0, decays)

    def terms(x: Array) -> tuple[Array, Array]:
        return decays, x[..., None] * aligned(alpha * beta, x[..., None])

    def read(h: Array, x: Array) -> Array:
        return einsum("BTWM,WM->BTW", h, eta)

    start = jnp.zeros((B, *decay.shape), decay.dtype) if state is None else state.h
    out, last = scan_diagonal(terms, read, wide(x), start)
    out = (out + omega[None, None] * wide(x)).astype(x.dtype)
    if of is None:
        return (out, EMAState(last)) if return_state else out
    out = of.without_padding(out)
    return (out, EMAState(last, of.last)) if return_state else out


@on_any_mesh
def damped_ema_convolution(
    x: X,
    weights: EMA,
    *,
    documents: Documents | None = None,
    state: EMAState | None = None,
    return_state: bool = False,
) -> Any:
    """The same by FFT, O(T (W + M)) memory for each example."""
    alpha, delta, beta, eta, omega = _scaled(weights)
    B, T, _ = x.shape
    log_decay = jnp.log(jnp.maximum(1 - alpha * delta, jnp.finfo(alpha.dtype).tiny))
    steps = jnp.arange(T + 1, dtype=log_decay.dtype)
    powers = jnp.exp(steps[:, None, None] * log_decay[None])
    kernel = jnp.sum(powers[:T] * (eta * alpha * beta)[None], axis=-1)
    row = compact(documents, (B, T), None if state is None else state.document)
    x = x if row is None else row.together(x)
    out, _ = long_conv(x, kernel, None, None if row is None else row.ids)
    if state is not None:
        brought = einsum("TWM,BWM->BTW", powers[1:], eta * state.h)
        out += brought if row is None else jnp.where(row.of.goes_on[..., None], brought, 0.0)
    out = (out + omega[None, None] * wide(x)).astype(x.dtype)
    out = out if row is None else row.apart(out)
    if not return_state:
        return out
    kept, left, document = wide(x), powers[T], None
    if row is not None:
        document = row.of.last
        kept = jnp.where((row.ids == document[:, None])[..., None], kept, 0.0)
        kept = row.at_the_end(kept)
        left = jnp.where(row.of.goes_on.all(1)[:, None, None], powers[row.count], 0.0)
    last = alpha * beta * einsum("TWM,BTW->BWM", powers[T - 1 :: -1], kept)
    if state is not None:
        last += left * state.h
    return out, EMAState(last, document)


def _scaled(weights: EMA) -> EMA:
    """Wide, and eta over sqrt(M)."""
    w = EMA(*map(wide, weights))
    return w._replace(eta=w.eta / math.sqrt(w.eta.shape[1]))


def gates_in_range(ema: EMA) -> EMA:
    """alpha and delta in (0, 1), for drawing."""
    return ema._replace(alpha=jax.nn.sigmoid(ema.alpha), delta=jax.nn.sigmoid(ema.delta))


def _alone(ema: EMA, delta: float) -> EMA:
    """One average of each channel, with this delta and ones for everything else."""
    one = jnp.ones_like(ema.alpha[:, :1])
    return EMA(one, delta * one, one, one, omega=jnp.zeros_like(ema.omega))


def _sum(x: X) -> X:
    return jnp.cumsum(x, axis=1)


_NO_MEMORY = adjusted(functools.partial(_alone, delta=1.0))
_NO_DECAY = adjusted(functools.partial(_alone, delta=0.0))
_LIMITS = (
    Limit("delta = 1 with all else 1 is x", {"weights": _NO_MEMORY}, features.identity),
    Limit("delta = 0 is the sum", {"weights": _NO_DECAY}, _sum),
)
_GATES = {"weights": adjusted(gates_in_range)}
OPS = (
    Op(damped_ema, papers=(226,), draw=_GATES, limits=_LIMITS),
    Op(damped_ema_convolution, papers=(226,), draw=_GATES, limits=_LIMITS),
)
