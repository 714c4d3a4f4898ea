"""The dense implementation: the readable truth, and the only one with every derivative.

O(T S) memory.  The other implementations must equal this one in value and gradient.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from attnjax.core import normalizers
from attnjax.core.call import Call, allowed, cut_operands, modify, product, weighted_values
from attnjax.typing import Array


def weights(call: Call) -> Array:
    """The matrix of attention weights, (B,N,T,S)."""
    tile = call.whole
    s = product(call.q, call.k)
    s = modify(call.mods, s, cut_operands(call.mods, tile), tile)
    s = s + call.q_poison + call.k_poison
    ok = allowed(call.mask, tile)
    if ok is not None:
        ok = jnp.broadcast_to(ok, s.shape)
    return normalizers.weights(call.normalizer, s, ok)


@dataclass(frozen=True)
class Dense:
    """The whole score matrix at once; forward mode, reverse mode and their compositions work."""

    def supported(self, call: Call) -> str | None:
        """None: dense runs everything, it is the definition."""
        return None

    def run(self, call: Call) -> Array:
        """The weighted sum of values, (B,N,T,D)."""
        return weighted_values(weights(call), call.v, call.v_table, call.whole)
