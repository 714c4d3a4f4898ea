"""Localized filtering: what queries and keys are made of has read the two tokens before.

    c_t = x_{t-1} A_0 + x_t A_1 + a,    y_t = c_{t-1} B_0 + c_t B_1 + b,    c_{-1} = x_{-1} = 0
    h_t = gain rms_norm(x_t + y_t)

Then q and k come from h and v from x, which is not filtered, and rotary causal attention follows:

    h = localized_filter(x, weights)
    out = attend(rotary(h W_q, positions), rotary(h W_k, positions), x W_v, mask=masks.causal)

Paper: Wu et al., "YUAN 2.0: A Large Language Model with Localized Filtering-based Attention", 2023,
arXiv:2311.15786; code: IEIT-Yuan/Yuan-2.0, `LocalizedFiltering`.
Limits: convolutions of zero are the norm of x.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from attnjax.core.numerics import aligned, matmul, rms_norm, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float

Tokens = Float[Array, "B T W"]


class LocalFilter(NamedTuple):
    """Two convolutions, of the token before by [0] and of its own by [1]; R is W / 2."""

    inner: Float[Array, "2 W R"]
    inner_bias: Float[Array, " R"]
    outer: Float[Array, "2 R W"]
    outer_bias: Float[Array, " W"]
    gain: Float[Array, " W"]


class FilterState(NamedTuple):
    """The last token and the last c, wide."""

    x: Float[Array, "B W"]
    c: Float[Array, "B R"]


_EPS = 1e-6


@on_any_mesh
def localized_filter(
    x: Tokens,
    weights: LocalFilter,
    *,
    state: FilterState | None = None,
    return_state: bool = False,
) -> Any:
    """h of tokens, each of which reads itself and the two before; a run may be split anywhere."""
    w, own = weights, wide(x)
    B, _, W = x.shape
    if state is None:
        nothing = (jnp.zeros((B, width), own.dtype) for width in (W, w.inner.shape[2]))
        state = FilterState(*nothing)
    c = _convolved(own, state.x, w.inner, w.inner_bias)
    y = _convolved(c, state.c, w.outer, w.outer_bias)
    out = rms_norm(own + y, _EPS)
    out = (out * aligned(w.gain, out)).astype(x.dtype)
    return (out, FilterState(own[:, -1], c[:, -1])) if return_state else out


def _convolved(x: Array, before: Array, kernel: Array, bias: Array) -> Array:
    late = jnp.concatenate([before[:, None].astype(x.dtype), x[:, :-1]], axis=1)
    out = matmul(late, kernel[0]) + matmul(x, kernel[1])
    return out + aligned(bias, out)


def _no_filter(weights: LocalFilter) -> LocalFilter:
    return weights._replace(outer=0 * weights.outer, outer_bias=0 * weights.outer_bias)


OPS = (
    Op(
        localized_filter,
        papers=(142,),
        reads="past",
        sizes={"R": 4},
        limits=(
            Limit(
                "convolutions of zero leave the norm",
                {"weights": adjusted(_no_filter)},
                lambda x, weights: rms_norm(x) * weights.gain,
            ),
        ),
    ),
)
