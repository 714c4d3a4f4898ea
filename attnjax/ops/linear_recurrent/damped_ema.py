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

from attnjax.core.numerics import wide
from attnjax.core.scan.convolution import long_conv
from attnjax.core.scan.diagonal import linear_scan
from attnjax.op import Limit, Variant, full, normal, uniform
from attnjax.typing import Array, Float

X = Float[Array, "B T W"]
Averages = Float[Array, "B W M"]


class EMA(NamedTuple):
    """Learned, (W,M) each: alpha and delta in (0, 1), beta spreads a channel, eta collects it."""

    alpha: Array
    delta: Array
    beta: Array
    eta: Array


def damped_ema(
    x: X, weights: EMA, *, state: Averages | None = None, return_state: bool = False
) -> Any:
    """The recurrence by a parallel scan, O(T W M) memory; the state is h."""
    alpha, delta, beta, eta = map(wide, weights)
    added = jnp.moveaxis(wide(x)[..., None] * (alpha * beta), 1, 0)
    decay = jnp.broadcast_to(1 - alpha * delta, (len(added), 1, *alpha.shape))
    h = linear_scan(decay, added, jnp.zeros_like(added[0]) if state is None else state)
    out = jnp.einsum("TBWM,WM->BTW", h, eta, precision="highest").astype(x.dtype)
    return (out, h[-1]) if return_state else out


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


def sample_ema(key: Array, z: Any, shape: str = "D M") -> EMA:
    gate, weight = uniform(shape, 0.05, 0.95), normal(shape)
    makers = zip((gate, gate, weight, weight), jax.random.split(key, 4), strict=True)
    return EMA(*(make(own, z) for make, own in makers))


def _only(delta: float) -> Any:
    return lambda key, z: EMA(*(full("D 1", a)(key, z) for a in (1.0, delta, 1.0, 1.0)))


_LIMITS = (
    Limit("delta = 1 with all else 1 is x", {"weights": _only(1.0)}, lambda x, weights: x),
    Limit("delta = 0 is the sum", {"weights": _only(0.0)}, lambda x, weights: jnp.cumsum(x, 1)),
)
_X = dict.fromkeys("qkv") | {"x": normal("B T D"), "weights": sample_ema}
_EXEMPT = {"grouped": "takes no q, k, v of several heads"}
VARIANTS = tuple(
    Variant(fn, (226,), "Ma et al., 2022, arXiv:2209.10655", _X, limits=_LIMITS, exempt=_EXEMPT)
    for fn in (damped_ema, damped_ema_convolution)
)
