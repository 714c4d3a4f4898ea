"""The dense implementation: the readable truth.

O(T S) memory.  The other implementations must equal this one in value and in every derivative.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from attnjax.core import normalizers
from attnjax.core.blocks.pairs import over_examples, over_heads, visible
from attnjax.core.dropout import drop
from attnjax.core.normalizers import Rows, State
from attnjax.core.pairwise.request import (
    Request,
    allowed,
    cut_operands,
    modify,
    product,
    weighted_values,
)
from attnjax.typing import Array


def weights(request: Request) -> Array:
    """The matrix of attention weights, (B,N,T,S)."""
    return _of_each(_weights, request)


def _weights(request: Request) -> Array:
    w, m, sums = _unnormalized(request)
    return normalizers.finish(request.normalizer, State(m, sums, w))


def scores(request: Request) -> Array:
    """The matrix of scores after all mods, (B,N,T,S); -inf where a pair is forbidden."""
    return _of_each(_forbidden, request)


def _of_each(fn: Callable[[Request], Any], request: Request) -> Any:
    """fn of the call: of all of it, or of each part that has one list of positions and blocks."""
    over = over_examples if request.selection is None else over_heads
    return over(fn, request, jax.vmap)


def _forbidden(request: Request) -> Array:
    s, ok = _scores(request)
    return s if ok is None else jnp.where(ok, s, -jnp.inf)


def _scores(request: Request) -> tuple[Array, Array | None]:
    """Scores after all mods, and which pairs are allowed."""
    request, tile = request.scaled(), request.whole
    ok = allowed(request.mask, tile)
    if request.selection is not None:
        seen = visible(request)
        ok = seen if ok is None else ok & seen
    s = product(request.q, request.k)
    ok = None if ok is None else jnp.broadcast_to(ok, s.shape)
    s = modify(request.mods, s, cut_operands(request.mods, tile), tile, ok)
    return s + request.q_poison + request.k_poison, ok


def _unnormalized(request: Request) -> tuple[Array, Array, Rows]:
    return normalizers.unnormalized(request.normalizer, *_scores(request))


def _state(request: Request) -> State:
    w, m, sums = _unnormalized(request)
    tile = request.whole
    kept = drop(request.dropout, w, tile)
    return State(m, sums, weighted_values(kept, request.v, request.v_table, tile))


@dataclass(frozen=True)
class Dense:
    """The whole score matrix at once; forward mode, reverse mode and their compositions work."""

    def supported(self, request: Request) -> str | None:
        """None: dense runs everything, it is the definition."""
        return None

    def run(self, request: Request) -> Array:
        """The weighted sum of values, (B,N,T,D)."""
        return normalizers.finish(request.normalizer, self.state(request))

    def state(self, request: Request) -> State:
        """What the keys leave behind for each query, to be merged with what other keys leave."""
        return _of_each(_state, request)
