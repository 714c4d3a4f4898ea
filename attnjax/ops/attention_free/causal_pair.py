"""Causal generation: a token and the one before it, the smaller number of each channel.

    y_t = min(x_t, x_{t-1}),    y_0 = x_0

It stands for attention between its projections, or for the activation of an MLP.  `combine` may be
jnp.maximum or a mean of the two instead.

Paper: Hilsenbek, "Breaking the Attention Bottleneck", 2024, arXiv:2406.10906.
Limits: a `combine` that takes the token itself gives x.
Differs: the author's code could not be opened; the minimum, the maximum and the mean are those that
users of it name, the first token is our reading.  The form that joins an average of the context is
not here, for how it joins was not found.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op
from attnjax.typing import Array, Float

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
)
