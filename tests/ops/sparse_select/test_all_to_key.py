"""All-to-key attention: its oracles, who reads what, the order of regions."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.sparse_select import distributed_attention, progressive_attention
from tests.helpers import draws, near, qkv, run, weights_of
from tests.ops.plain import blocks_of_cells, kv, sigmoid, softmax

B, N, K, H = 2, 4, 2, 4


def distributed_attention_oracle(q, k, v, shape, region, gain=1.0, bias=0.0):
    (B, T, N, _), out = q.shape, np.zeros((*q.shape[:3], v.shape[-1]))
    for b, n in np.ndindex(B, N):
        keys, values = k[b, :, kv(q, k, n)], v[b, :, kv(q, k, n)]
        pairs = []
        for cells in blocks_of_cells(shape, (region, region)).values():
            m = keys[cells].mean(0)
            w = [sigmoid(bias + gain * m @ keys[j]) for j in cells]
            sums = [
                x[cells].mean(0) + sum(a * x[j] for a, j in zip(w, cells, strict=True))
                for x in (keys, values)
            ]
            pairs.append([x / (len(cells) + 1) for x in sums])
        for t in range(T):
            w = softmax(np.array([q[b, t, n] @ key for key, _ in pairs]))
            out[b, t, n] = sum(x * value for x, (_, value) in zip(w, pairs, strict=True))
    return out


def slots(shape, region):
    """The regions of a map: {place inside: cell} of each."""
    at = list(np.ndindex(*shape))
    found = blocks_of_cells(shape, (region, region)).values()
    return [{tuple(x % region for x in at[cell]): cell for cell in cells} for cells in found]


def progressive_attention_oracle(q, k, v, shape, key_shape, region):
    (B, _, N, _), out = q.shape, np.zeros((*q.shape[:3], v.shape[-1]))
    for b, n in np.ndindex(B, N):
        queries, keys, values = q[b, :, n], k[b, :, kv(q, k, n)], v[b, :, kv(q, k, n)]
        for mine in slots(shape, region):
            others = slots(key_shape, region)
            pairs = [[(mine[p], other[p]) for p in mine if p in other] for other in others]
            likes = [sum(queries[i] @ keys[j] for i, j in found) for found in pairs]
            js = list(others[int(np.argmax(likes))].values())
            for i in mine.values():
                out[b, i, n] = softmax(keys[js] @ queries[i]) @ values[js]
    return out


def test_a_query_reads_one_region_and_regions_are_matched_place_by_place():
    """The regions of the keys are those of the queries in another order: each finds its own."""
    regions = draws((4, 4, N, H), scale=3.0)[0]
    cells = np.array(list(blocks_of_cells((4, 4), (2, 2)).values()))
    order = np.array([2, 0, 3, 1])
    q, k = (jnp.zeros((1, 16, N, H)).at[0, cells].set(x) for x in (regions, regions[order]))
    op = functools.partial(run, progressive_attention, shape=(4, 4), key_shape=(4, 4), region=2)
    w = weights_of(op, q, k)
    for g, mine in enumerate(cells):
        near(w[0][:, mine[:, None], cells[list(order).index(g)]].sum(-1), np.ones((N, 4)))


def test_all_queries_read_all_regions():
    q, k, _ = qkv(B, 9, N, H, S=12, K=K)
    w = weights_of(functools.partial(run, distributed_attention), q, k, shape=(3, 4), region=2)
    assert (w > 0).all()
    shares = w[..., np.array(list(blocks_of_cells((3, 4), (2, 2)).values())[0])]
    near(
        shares / shares[:, :, :1],
        np.broadcast_to(shares[..., :1] / shares[:, :, :1, :1], shares.shape),
    )


def test_maps_of_other_sizes():
    q, k, v = qkv(1, 4, 1, 2)
    with pytest.raises(ValueError, match=r"shape: \(3, 2\); expected rows and columns of 4 tokens"):
        distributed_attention(q, k, v, shape=(3, 2))
    with pytest.raises(ValueError, match=r"key_shape: \(4,\); expected rows"):
        progressive_attention(q, k, v, shape=(2, 2), key_shape=(4,))
