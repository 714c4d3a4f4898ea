"""Engine 4, diagonal recurrences: h_t = a_t h_{t-1} + b_t, elementwise."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from attnjax.core.chunks import scan_chunks
from attnjax.core.sharding import on_any_mesh
from attnjax.typing import Array


@on_any_mesh
def linear_scan(decay: Array, add: Array, start: Array, axis: int = 0) -> Array:
    """h_t = decay_t h_{t-1} + add_t along an axis, from h_0 = start: all of them, in parallel.

    decay and add broadcast but along the axis; start has no such axis.
    """

    def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return a[0] * b[0], b[0] * a[1] + b[1]

    total, h = lax.associative_scan(join, (decay, add), axis=axis)
    return h + total * lax.expand_dims(start, (axis,))


def scan_diagonal(
    terms: Callable[[Any], tuple[Array, Array]],
    read: Callable[[Array, Any], Array],
    tokens: Any,
    start: Array,
    *,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """y_t = read(h_t, tokens_t) with h_t = decay_t h_{t-1} + input_t; and the last h.

    terms   tokens -> (decay, input), which broadcast to (B,t,...)
    read    (states (B,t,...), tokens) -> results (B,t,...)
    tokens  a tree of arrays (B,T,...)
    start   (B,...), the state before them
    chunk   tokens whose states are held at once, in the backward pass too, which computes them
            again; None: all.  Tokens of zeros fill the last chunk up: `terms` of these must be a
            decay of one and an input of zero
    """

    def over_chunk(state: Array, tokens: Any) -> tuple[Array, Array]:
        states = linear_scan(*terms(tokens), state, axis=1)
        return states[:, -1], read(states, tokens)

    if chunk is None:
        last, results = over_chunk(start, tokens)
    else:
        last, results = scan_chunks(jax.checkpoint(over_chunk), start, tokens, chunk)
    return results, last
