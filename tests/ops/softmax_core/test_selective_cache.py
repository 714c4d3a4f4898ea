"""The cache of selective attention: oracles, a budget kept for ever, what may be dropped."""

import numpy as np
import pytest

from attnjax import attend, masks, mods
from attnjax.ops.softmax_core import (
    selection,
    selective_attention,
    selective_kept,
    selective_memory_loss,
)
from tests.helpers import near, qkv, run
from tests.ops.plain import kv

B, T, N, K, H = 2, 12, 4, 2, 8


def asked(q, k):
    (B, T, _, H) = q.shape
    F = np.zeros((B, T, T))
    for b in range(B):
        for i in range(T):
            for l in range(i):
                for j in range(1, l):
                    F[b, i, j] += max(0.0, q[b, l, 0] @ k[b, j, kv(q, k, 0)] / np.sqrt(H))
    return F


def selective_kept_oracle(queries, keys, capacity):
    F = asked(queries, keys)
    kept = np.zeros(F.shape, bool)
    for b in range(len(F)):
        cache = []
        for i in range(F.shape[1]):
            cache.append(i)
            if len(cache) > capacity:
                cache.remove(max(cache[1:-1], key=lambda j: (F[b, i, j], -j)))
            kept[b, i, cache] = True
    return kept


def selective_memory_loss_oracle(q, k, tau=1.0):
    F = asked(q, k)
    of = lambda rows: max(
        sum(1 - min(f, tau) / tau for f in row[: i + 1]) for i, row in enumerate(rows)
    )
    return np.mean([of(rows) for rows in F]) / F.shape[1]


def test_a_cache_keeps_its_budget_and_nothing_comes_back():
    q, k, _ = qkv(B, T, N, H, K=K)
    kept = np.asarray(run(selective_kept, q, k, capacity=4))
    assert (kept.sum(-1) == np.minimum(np.arange(T) + 1, 4)).all()
    assert kept[:, :, 0].all() and np.diagonal(kept, axis1=1, axis2=2).all()
    came = np.diff(kept.astype(int), axis=1) > 0
    assert (np.argwhere(came)[:, 1] + 1 == np.argwhere(came)[:, 2]).all()


def test_keys_that_are_masked_strongly_may_be_dropped():
    """Two keys are asked to be forgotten at once: without them the output is the same."""
    q, k, v = qkv(1, T, N, H, K=N)
    q, k = 0.1 * q, 0.1 * k
    q, k = q.at[:, :, 0, 0].set(0.0), k.at[:, :, 0, 0].set(0.0)
    q, k = q.at[:, 5, 0, 0].set(100.0), k.at[:, (2, 3), 0, 0].set(100.0)
    kept = selective_kept(q, k, capacity=T - 2)
    assert (~kept[0, -1]).nonzero()[0].tolist() == [2, 3]
    bias = mods.pair_bias(-selection(q, k)[:, None])
    mask = masks.causal & masks.array(kept[:, None])
    near(attend(q, k, v, mods=(bias,), mask=mask), selective_attention(q, k, v))


def test_forgetting_lowers_the_loss():
    q, k, _ = qkv(B, T, N, H, K=K)
    losses = [float(selective_memory_loss(scale * q, k)) for scale in (0.0, 0.3, 3.0, 30.0)]
    assert losses[0] == 1 and losses == sorted(losses, reverse=True) and losses[-1] < 0.8


@pytest.mark.parametrize("capacity", [0, 1])
def test_a_cache_without_room(capacity):
    q, k, _ = qkv(1, 3, 1, 2)
    with pytest.raises(ValueError, match=f"capacity: {capacity}; expected at least 2"):
        selective_kept(q, k, capacity=capacity)
