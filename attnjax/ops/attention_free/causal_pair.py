"""Causal generation: a token and the one before it, the smaller number of each channel.

    causal_pair             y_t = min(x_t, x_{t-1}),    y_0 = x_0
    causal_pair_in_context  (y_t + mean of x_0 .. x_t) / 2

They stand for attention between its projections, or for the activation of an MLP.  `combine` may
be jnp.maximum or a mean of the two instead.

Paper: Hilsenbek, "Breaking the Attention Bottleneck", 2024, arXiv:2406.10906.
Limits: a `combine` that takes the token itself gives x; equal tokens stay.
Differs: the author's code could not be opened; the minimum, the maximum and the mean are those that
users of it name.  The first token, and how the average of the context joins, are our reading.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, Int

Tokens = Float[Array, "B T W"]


@on_any_mesh
def causal_pair(
    x: Tokens,
    *,
    combine: Callable[[Array, Array], Array] = jnp.minimum,
    state: Float[Array, "B W"] | None = None,
    return_state: bool = False,
) -> Any:
    """`combine(token, the one before)`, without parameters; the state is the last token."""
    first = x[:, :1] if state is None else state[:, None].astype(x.dtype)
    out = combine(x, jnp.concatenate([first, x[:, :-1]], axis=1))
    return (out, x[:, -1]) if return_state else out


class Context(NamedTuple):
    """The last token, the sum of all, wide, and how many there were."""

    last: Float[Array, "B W"]
    total: Float[Array, "B W"]
    count: Int[Array, ""]


@on_any_mesh
def causal_pair_in_context(
    x: Tokens,
    *,
    combine: Callable[[Array, Array], Array] = jnp.minimum,
    state: Context | None = None,
    return_state: bool = False,
) -> Any:
    """The mean of `causal_pair` and of the average of all tokens up to this one."""
    last, start = (None, 0) if state is None else (state.last, state.count)
    pair, last = causal_pair(x, combine=combine, state=last, return_state=True)
    total = jnp.cumsum(wide(x), axis=1)
    if state is not None:
        total = total + state.total[:, None]
    count = jnp.asarray(start + 1 + np.arange(x.shape[1]), total.dtype)
    out = ((wide(pair) + total / count[None, :, None]) / 2).astype(x.dtype)
    if not return_state:
        return out
    return out, Context(last, total[:, -1], jnp.asarray(start + x.shape[1], jnp.int32))


def _now(now: Array, before: Array) -> Array:
    return now


def _unchanged(x: Tokens) -> Tokens:
    return x


OPS = (
    Op(
        causal_pair,
        papers=(193,),
        limits=(Limit("the token itself: x", {"combine": _now}, _unchanged),),
    ),
    Op(
        causal_pair_in_context,
        papers=(193,),
        limits=(Limit("equal tokens stay", {"x": fill(1.5)}, _unchanged),),
    ),
)
