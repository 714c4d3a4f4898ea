"""Which devices a ring visits, and that it visits no tile in vain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import masks
from attnjax.core.pairwise.operands import Shape
from attnjax.core.pairwise.tile_list import tile_list
from attnjax.parallel.layouts import order
from attnjax.parallel.ring import Hops, hops_of
from attnjax.parallel.tokens import LayoutSharding


def _brute_hops(mask, tokens, P_, T):
    """Hops that bring a visible key to some query, from the dense mask."""
    at = order(tokens.layout, P_, T).reshape(P_, -1)
    dense = np.broadcast_to(mask.dense(T, T), (T, T))
    return {(i - j) % P_ for i in range(P_) for j in range(P_) if dense[np.ix_(at[i], at[j])].any()}


@pytest.mark.parametrize("kind", ["contiguous", "zigzag", "striped"])
@pytest.mark.parametrize(
    "mask",
    [
        masks.causal, masks.causal & masks.window(3), masks.causal & masks.window(4),
        masks.window(5, 5), masks.window(0, 4), masks.document(np.repeat(np.arange(16), 4)),
        masks.causal & (masks.window(2) | masks.sinks(1)),
    ],
    ids=str,
)  # fmt: skip
def test_walks_are_as_short_as_the_mask_allows(kind, mask):
    class Eight(LayoutSharding):
        size = parts = property(lambda self: 8)

    tokens = Eight("Ring", ("sp",), kind)
    walk = hops_of(mask.resolve(64, 64), tokens, 8, 8, True)
    needed = _brute_hops(mask, tokens, 8, 64) - {0}
    assert needed <= {*range(walk.ahead + 1), *(8 - h for h in range(1, walk.behind + 1))}
    if kind != "striped":  # striped runs are judged by their ends
        shorter = [
            Hops(a, b) for a in range(8) for b in range(8 - a)
            if needed <= {*range(a + 1), *(8 - h for h in range(1, b + 1))}
        ]  # fmt: skip
        assert sum(walk) == min(map(sum, shorter))


def test_a_hop_without_visible_keys_has_no_tiles():
    """Device 0 of a causal ring: keys of device 3 lie in its future."""
    z = Shape(1, 16, 16, 1, 1, 4, 4)

    @jax.jit
    def used(q_first, k_first):
        at = jnp.arange(16, dtype=jnp.int32)
        return tile_list(masks.causal, z, 4, 4, q_first + at, k_first + at).used

    assert used(0, 48) == 0 and used(48, 0) == 16 and used(16, 16) == 10
