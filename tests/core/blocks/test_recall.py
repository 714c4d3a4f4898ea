"""Maps pooled to blocks, and what a selection recalls of them."""

import jax.numpy as jnp
import numpy as np

from attnjax import (
    attention_weights,
    masks,
    mods,
    select,
)
from attnjax.core.blocks.block_maps import block_mass, block_peak
from attnjax.probes import best_selection, selection_recall
from tests.core.blocks.inputs import B, N, S, T, as_array, qkv, some_blocks
from tests.helpers import close, draw


def test_maps_pooled_to_blocks_are_those_of_the_dense_map():
    q, k, _ = qkv()
    options = {"mods": (mods.soft_cap(2.0),), "mask": masks.causal}
    w = np.zeros((B, N, 15, 12))
    w[:, :, :T, :S] = attention_weights(q, k, **options)
    blocks = w.reshape(B, N, 5, 3, 3, 4).transpose(0, 2, 1, 4, 3, 5)
    close(block_mass(q, k, 3, 4, **options), blocks.sum((-1, -2)), 1e-6)
    close(block_peak(q, k, 3, 4, **options), blocks.max((-1, -2)), 1e-6)


def test_recall_is_the_share_of_weights_in_the_selected_blocks():
    q, k, _ = qkv()
    chosen = some_blocks(2, 3, 4, 2)
    w = np.asarray(attention_weights(q, k, mask=masks.causal))
    want = (w * as_array(chosen)).sum(-1).transpose(0, 2, 1)
    close(selection_recall(q, k, chosen, mask=masks.causal), want, 1e-6)
    nobody = masks.array(np.zeros((T, S), bool))
    assert (selection_recall(q, k, chosen, mask=nobody) == 1).all()


def test_no_selection_recalls_more_than_the_oracle():
    q, k, _ = qkv()
    sizes = {"block_q": 3, "block_k": 4}
    recall = lambda chosen: selection_recall(q, k, chosen, mask=masks.causal)
    by_block = lambda x: jnp.stack([x[:, u * 3 : u * 3 + 3].sum(1) for u in range(5)])
    best = by_block(recall(best_selection(q, k, 2, mask=masks.causal, **sizes)))
    for seed in range(4):
        chosen = select.top_k(draw(B, 5, N, 3, seed=seed), 2, **sizes)
        assert (by_block(recall(chosen)) <= best + 1e-5).all()
