"""Mega's multi-dimensional damped EMA: M moving averages of each channel, summed.

    h_t = alpha beta x_t + (1 - alpha delta) h_{t-1},    y_t = eta . h_t,    for each channel
    y_t = sum_{j <= t} kernel_{t-j} x_j,    kernel_i = eta . (1 - alpha delta)^i alpha beta

Paper: Ma et al., "Mega: Moving Average Equipped Gated Attention", 2022, arXiv:2209.10655,
section 3.1.
Limits: alpha = beta = eta = 1 with M = 1 and delta = 1 is x itself, and with delta = 0 its sum.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import wide
from attnjax.core.scan.convolution import long_conv
from attnjax.core.scan.diagonal import scan_diagonal
from attnjax.op import Draw, Limit, Op, adjusted
from attnjax.typing import Array, Float

X = Float[Array, "B T W"]
Averages = Float[Array, "B W M"]


class EMA(NamedTuple):
    """Learned, (W,M) each: alpha and delta in (0, 1), beta spreads a channel, eta collects it."""

    alpha: Float[Array, "W M"]
    delta: Float[Array, "W M"]
    beta: Float[Array, "W M"]
    eta: Float[Array, "W M"]


def damped_ema(
    x: X, weights: EMA, *, state: Averages | None = None, return_state: bool = False
) -> Any:
    """The recurrence by a parallel scan, O(T W M) memory; the state is h."""
    alpha, delta, beta, eta = map(wide, weights)
    (B, T, _), decay = x.shape, 1 - alpha * delta
    out, last = scan_diagonal(
        lambda x: (jnp.broadcast_to(decay, (1, T, *decay.shape)), x[..., None] * (alpha * beta)),
        lambda h, _: jnp.einsum("BTWM,WM->BTW", h, eta, precision="highest"),
        wide(x),
        jnp.zeros((B, *decay.shape), decay.dtype) if state is None else state,
    )
    out = out.astype(x.dtype)
    return (out, last) if return_state else out


def damped_ema_convolution(
    x: X, weights: EMA, *, state: Averages | None = None, return_state: bool = False
) -> Any:
    """The same by FFT, O(T (W + M)) memory for each example."""
    (alpha, delta, beta, eta), T = map(wide, weights), x.shape[1]
    log_decay = jnp.log(jnp.maximum(1 - alpha * delta, jnp.finfo(alpha.dtype).tiny))
    powers = jnp.exp(jnp.arange(T + 1)[:, None, None] * log_decay)
    out, _ = long_conv(x, (powers[:T] * (eta * alpha * beta)).sum(-1))
    if state is not None:
        out += jnp.einsum("TWM,BWM->BTW", powers[1:], eta * state, precision="highest")
    out = out.astype(x.dtype)
    if not return_state:
        return out
    h = jnp.einsum("TWM,BTW->BWM", powers[T - 1 :: -1], wide(x), precision="highest")
    h *= alpha * beta
    return out, h if state is None else h + powers[T] * state


def gates_in_range(ema: EMA) -> EMA:
    """alpha and delta in (0, 1), for drawing."""
    squash = lambda x: 1 / (1 + np.exp(-x))
    return ema._replace(alpha=squash(ema.alpha), delta=squash(ema.delta))


def _only(delta: float) -> Draw:
    fixed = lambda ema: EMA(*(np.full_like(ema.alpha, a) for a in (1.0, delta, 1.0, 1.0)))
    return adjusted(lambda ema: jax.tree.map(lambda x: x[:, :1], fixed(ema)))


_LIMITS = (
    Limit("delta = 1 with all else 1 is x", {"weights": _only(1.0)}, lambda x: x),
    Limit("delta = 0 is the sum", {"weights": _only(0.0)}, lambda x: jnp.cumsum(x, 1)),
)
_GATES = {"weights": adjusted(gates_in_range)}
OPS = (
    Op(damped_ema, papers=(226,), draw=_GATES, limits=_LIMITS),
    Op(damped_ema_convolution, papers=(226,), draw=_GATES, limits=_LIMITS),
)
