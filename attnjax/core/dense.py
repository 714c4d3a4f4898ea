"""The dense implementation: the readable truth, and the only one with every derivative.

O(T S) memory.  The other implementations must equal this one in value and gradient.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from attnjax.core import normalizers
from attnjax.core.call import Call, allowed, cut_operands, modify, product, weighted_values
from attnjax.core.normalizers import Rows, State
from attnjax.core.selected import over_heads, visible
from attnjax.typing import Array


def weights(call: Call) -> Array:
    """The matrix of attention weights, (B,N,T,S)."""
    if call.selection is not None:
        return over_heads(_weights, call, jax.vmap)
    return _weights(call)


def _weights(call: Call) -> Array:
    w, m, sums = _unnormalized(call)
    return normalizers.finish(call.normalizer, State(m, sums, w))


def _unnormalized(call: Call) -> tuple[Array, Array, Rows]:
    call, tile = call.scaled(), call.whole
    ok = allowed(call.mask, tile)
    if call.selection is not None:
        seen = visible(call)
        ok = seen if ok is None else ok & seen
    s = product(call.q, call.k)
    ok = None if ok is None else jnp.broadcast_to(ok, s.shape)
    s = modify(call.mods, s, cut_operands(call.mods, tile), tile, ok)
    s = s + call.q_poison + call.k_poison
    return normalizers.unnormalized(call.normalizer, s, ok)


def _state(call: Call) -> State:
    w, m, sums = _unnormalized(call)
    return State(m, sums, weighted_values(w, call.v, call.v_table, call.whole))


@dataclass(frozen=True)
class Dense:
    """The whole score matrix at once; forward mode, reverse mode and their compositions work."""

    def supported(self, call: Call) -> str | None:
        """None: dense runs everything, it is the definition."""
        return None

    def run(self, call: Call) -> Array:
        """The weighted sum of values, (B,N,T,D)."""
        return normalizers.finish(call.normalizer, self.state(call))

    def state(self, call: Call) -> State:
        """What the keys leave behind for each query, to be merged with what other keys leave."""
        return _state(call) if call.selection is None else over_heads(_state, call, jax.vmap)
