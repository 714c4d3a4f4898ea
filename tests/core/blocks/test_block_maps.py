"""Maps of attention pooled to blocks, a few rows at a time."""

import jax.numpy as jnp
import numpy as np

from attnjax import masks
from attnjax.core.blocks import block_maps
from attnjax.core.pairwise.attend import attention_weights
from tests.helpers import draws, near

B, T, N, K, H = 2, 13, 4, 2, 8


def qkv(T=T, seed=0):
    return draws((B, T, N, H), (B, T, K, H), (B, T, K, H), seed=seed)


def test_weights_taken_a_few_rows_at_a_time_are_those_of_all(monkeypatch):
    monkeypatch.setattr(block_maps, "_ROWS", 4)
    q, k, _ = qkv(29)
    looked_at = set()

    def keep(w, first):
        looked_at.add(w.shape[-1])
        w = jnp.pad(w, ((0, 0),) * 3 + ((0, 29 - w.shape[-1]),))
        return jnp.swapaxes(w, 1, 2), jnp.broadcast_to(first + jnp.arange(4), (B, 4))

    def taken(mask):
        looked_at.clear()
        w, rows = block_maps.reduce_rows(q, k, keep, mask=mask)
        near(jnp.swapaxes(w, 1, 2), attention_weights(q, k, mask=mask), 1e-6)
        assert np.array_equal(rows, np.broadcast_to(np.arange(29), (B, 29)))
        return set(looked_at)

    assert taken(masks.causal) == {8, 16, 24, 29}  # early rows do not compute what they cannot see
    assert taken(masks.sinks(3)) == {8}
    assert taken(masks.everything) == {29}
