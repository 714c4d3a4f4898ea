"""Combiner: its oracles, the regions of a query, full support, summaries that serve all queries."""

import functools

import jax
import numpy as np
import pytest

from attnjax.ops.sparse_select import combiner_dyadic, combiner_fixed
from tests.helpers import draws, near, qkv, run, weights_of
from tests.ops.plain import kv, softmax

B, T, N, K, H = 1, 13, 4, 2, 4


def fixed_regions(i, block):
    """(tokens, regions) of query i."""
    own = i // block * block
    return list(range(own, i + 1)), [range(b, b + block) for b in range(0, own, block)]


def dyadic_regions(i):
    rest, regions = i, []
    while rest:
        size = rest & -rest  # the lowest bit that is set
        regions.append(range(rest - size, rest))
        rest -= size
    return [i], regions


def combined(q, k, v, seen):
    (B, T, N, H), D = q.shape, v.shape[-1]
    out = np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        keys, values, queries = k[b, :, kv(q, k, n)], v[b, :, kv(q, k, n)], q[b, :, n]
        tokens, regions = seen(i)
        pairs = [(keys[j], values[j]) for j in tokens]
        for r in map(list, regions):
            inside = softmax(keys[r] @ queries[r].max(0) / np.sqrt(H))
            pairs.append((keys[r].max(0), inside @ values[r]))
        w = softmax(np.array([queries[i] @ key / np.sqrt(H) for key, _ in pairs]))
        out[b, i, n] = sum(x * value for x, (_, value) in zip(w, pairs, strict=True))
    return out


def combiner_fixed_oracle(q, k, v, block):
    return combined(q, k, v, lambda i: fixed_regions(i, block))


def combiner_dyadic_oracle(q, k, v):
    return combined(q, k, v, dyadic_regions)


@pytest.mark.parametrize("of", [combiner_dyadic, lambda *x: combiner_fixed(*x, block=4)])
def test_every_token_so_far_has_a_weight(of):
    w = weights_of(jax.jit(of), *qkv(B, T, N, H, K=K)[:2])
    near(w.sum(-1), np.ones((B, N, T)))
    assert ((w > 0) == np.tri(T, dtype=bool)).all()


def test_dyadic_regions_are_a_partition_of_the_past():
    for i in range(70):
        tokens, regions = dyadic_regions(i)
        assert sorted(sum(map(list, regions), tokens)) == list(range(i + 1))
        assert len(regions) == i.bit_count()


def test_inside_a_region_all_later_queries_weigh_alike():
    q, k = draws((B, 12, N, H), (B, 12, K, H))
    w = weights_of(functools.partial(run, combiner_fixed), q, k, block=4)
    inside = w[..., 4:, :4] / w[..., 4:, :4].sum(-1, keepdims=True)
    near(inside, np.broadcast_to(inside[..., :1, :], inside.shape))


def test_a_block_of_no_tokens():
    with pytest.raises(ValueError, match="block: 0; expected at least 1"):
        combiner_fixed(*qkv(B, T, N, H, K=K), block=0)
