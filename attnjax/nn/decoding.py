"""Layers one part of a text after the other: what a layer keeps, and its next outputs.

    cache = begin(layer, (B, length, width))
    y, cache = advance(layer, x, cache)      # x (B,T,width): a prompt, then token by token

gives what layer(x) gives at once, for every causal layer:

    a recurrent layer                  keeps its state
    `Attention` by `decode.Causal`, or
    by a partial of `attend`           keeps a cache of `decode`, from which a policy may drop
    any other                          keeps its inputs, and is calculated anew: right, but slow
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attnjax import decode
from attnjax.nn.attention import Attention
from attnjax.nn.recurrent import Recurrent

Make = Callable[[int, int, int, int], Any]  # (B, length, K, H) -> a cache


class Inputs(NamedTuple):
    """All that a layer has been given, (B,length,width), of which `count` tokens are there."""

    x: jax.Array
    count: jax.Array


def begin(layer: Any, shape: tuple[int, int, int], make: Make = decode.Dense.empty) -> Any:
    """What a layer keeps before the first token of texts of shape (B,length,width) at most.

    make(B, length, K, H) gives the cache of a layer of attention.
    """
    if isinstance(layer, Recurrent):
        return None
    if _stepped(layer) is not None:
        return make(*shape[:2], *layer.k.out_features)
    return Inputs(jnp.zeros(shape), jnp.zeros((), jnp.int32))


def advance(
    layer: Any, x: jax.Array, cache: Any, policy: Callable[..., Any] | None = None
) -> tuple[jax.Array, Any]:
    """The outputs (B,T,width) of the next T tokens, and what is kept behind them.

    policy    drops from a cache of `decode`; other layers have nothing to drop
    """
    if isinstance(layer, Recurrent):
        return layer.run(x, cache)
    if (op := _stepped(layer)) is not None:
        out, cache = op.step(*layer.project(x), cache, policy)
        return layer.finish(x, out), cache
    every = lax.dynamic_update_slice_in_dim(cache.x, x.astype(cache.x.dtype), cache.count, 1)
    out = layer.combine(every, *layer.project(every))
    new = lax.dynamic_slice_in_dim(out, cache.count, x.shape[1], 1)
    return new, Inputs(every, cache.count + x.shape[1])


def _stepped(layer: Any) -> Any:
    """The op of a layer that is attention and nothing else, if it has a cached form."""
    return decode.stepped(layer.attend) if type(layer) is Attention else None
