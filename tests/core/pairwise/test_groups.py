"""Mods that look at groups of keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import (
    Blockwise,
    attend,
    masks,
    mods,
)
from tests.core.blocks.inputs import B, D, H, K, N, T, qkv, some_blocks
from tests.helpers import close, draw, value_and_pull


def grouped(s, allowed, q_pos, k_pos):
    """Keys of earlier groups share the weight of one key of score zero."""
    return jnp.where(k_pos // 3 < q_pos // 3, s - mods.log_sum_exp(s, allowed, 3), s)


@pytest.mark.parametrize("impl", ["dense", Blockwise(4, 2), Blockwise(5, 7)], ids=str)
def test_a_mod_may_look_at_a_group_of_keys(impl):
    """Against loops; the last group is not whole, and a mask takes keys out of groups."""
    q, k, v = draw(B, T, N, H, seed=0), draw(B, T, K, H, seed=1), draw(B, T, K, D, seed=2)
    keep = np.random.default_rng(1).random((T, T)) < 0.8
    mask = masks.causal & masks.array(keep)
    mod = mods.mod(grouped, positions=True, group=3)
    run = lambda q, k, v: attend(q, k, v, mods=(mod,), mask=mask, impl=impl)
    with jax.enable_x64():
        wide = [x.astype(jnp.float64) for x in (q, k, v)]
        out, *grads = value_and_pull(run)(*wide)
        q, k, v = map(np.asarray, wide)
        for b, n, i in ((0, 0, 12), (1, 3, 7), (1, 1, 4)):
            weight = np.zeros(T)
            for g in range(i // 3 + 1):
                js = [j for j in range(3 * g, min(3 * g + 3, i + 1)) if keep[i, j]]
                e = np.exp([q[b, i, n] @ k[b, j, n // 2] / np.sqrt(H) for j in js])
                weight[js] = e if g == i // 3 else e / e.sum()
            if weight.any():
                close(out[b, i, n], weight / weight.sum() @ v[b, :, n // 2])
        if impl != "dense":
            dense = lambda q, k, v: attend(q, k, v, mods=(mod,), mask=mask, impl="dense")
            close([out, *grads], list(value_and_pull(dense)(*wide)))


def test_a_group_must_fit_the_selected_blocks():
    q, k, v = qkv()
    mod = mods.mod(grouped, positions=True, group=3)
    with pytest.raises(ValueError, match="block_k is 4, expected a multiple of the mods' group 3"):
        attend(q, k, v, blocks=some_blocks(1, 1, 4, 2), mods=(mod,))
    with pytest.raises(ValueError, match="group is 0"):
        mods.mod(grouped, group=0)
