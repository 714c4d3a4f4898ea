"""The Extractor: a learned map for every lag, summed over the past, times a gate.

    e_t = sum_{l < L} x_{t-l} W_l,    W_l a matrix, a number for each channel, or one number
    y_t = (s_t e_t + b) * (x_t A + a),    s_t = 1, or 1 / sqrt(t + 1) in `extractor_by_root`

in place of attention between its projections.

Paper: Chen, "Attention Is Not All You Need Anymore", 2023, arXiv:2308.07661; Chen, "Advancing the
extractor", 2023, arXiv:2311.12678, for the root.
Limits: a gate of zeros gives zeros; one lag is a gated unit for each token.
Differs: no code of the author was found. That maps belong to lags is our reading; a third party's
module has one for each place in the text.
"""

from typing import Annotated

import jax.numpy as jnp
from jax import lax

from attnjax.core.numerics import Affine, aligned, wide
from attnjax.core.scan.convolution import long_conv
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float

Tokens = Float[Array, "B T W"]
Gate = Annotated[Affine, "W W"]
Lags = Float[Array, "L W W"] | Float[Array, "L W"] | Float[Array, " L"]


@on_any_mesh
def extractor(x: Tokens, lags: Lags, bias: Float[Array, " W"], gate: Gate) -> Tokens:
    """Causal; O(T L W^2) with matrices, O(T log^2 T W) without."""
    return _gated(x, _extracted(x, lags), bias, gate)


@on_any_mesh
def extractor_by_root(x: Tokens, lags: Lags, bias: Float[Array, " W"], gate: Gate) -> Tokens:
    """The same with sums divided by the root of how many tokens there are."""
    e = _extracted(x, lags)
    count = jnp.arange(1, x.shape[1] + 1, dtype=e.dtype)
    return _gated(x, e * lax.rsqrt(count)[None, :, None], bias, gate)


def _extracted(x: Tokens, lags: Lags) -> Tokens:
    x, lags, W = wide(x), wide(lags), x.shape[2]
    if lags.ndim < 3:
        kernel = lags if lags.ndim == 2 else jnp.broadcast_to(lags[:, None], (len(lags), W))
        return long_conv(x, kernel)[0]
    before = len(lags) - 1
    return lax.conv_general_dilated(
        x,
        lags[::-1],
        window_strides=(1,),
        padding=[(before, 0)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=lax.Precision.HIGHEST,
    )


def _gated(x: Tokens, e: Tokens, bias: Array, gate: Affine) -> Tokens:
    return ((e + aligned(bias, e)) * gate(x)).astype(x.dtype)


def _zeros(x: Tokens) -> Tokens:
    return 0.0 * x


_shut = adjusted(lambda gate: Affine(0.0 * gate.w, 0.0 * gate.b))

OPS = tuple(
    Op(
        fn,
        papers=(105,),
        sizes={"L": 4},
        limits=(Limit("a gate of zeros", {"gate": _shut}, _zeros),),
    )
    for fn in (extractor, extractor_by_root)
)
