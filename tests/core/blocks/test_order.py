"""Tokens in another order, buckets of a hash, and keys drawn by density."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, masks, select
from attnjax.core.blocks.order import BlockOrder, gray_codes, grid_blocks, running_kth, sample_keys
from tests.helpers import draw, near


def test_neighboring_buckets_differ_in_one_side():
    x, planes = draw(1, 4000, 1, 3), draw(3, 3, seed=1)
    codes = np.asarray(gray_codes(x, planes))[0, :, 0]
    sides = np.asarray(x[0, :, 0] @ planes > 0)
    of_code = {c: {tuple(s) for s in sides[codes == c]} for c in np.unique(codes)}
    assert sorted(of_code) == list(range(8))
    patterns = [np.array(of_code[c].pop()) for c in range(8)]
    assert not any(of_code.values())  # one pattern each
    assert all((a != b).sum() == 1 for a, b in zip(patterns, patterns[1:], strict=False))


def test_keys_are_drawn_in_proportion_to_their_density_in_each_segment():
    density = jnp.asarray([1.0, 0.0, 3.0, 4.0, 2.0, 6.0, 5.0])[None, :, None]
    draws = (jnp.arange(16) + 0.5) / 16
    at, log_weight = sample_keys(draws, density, 4)
    counts = np.bincount(np.asarray(at[0, :16, 0]), minlength=7)
    near(counts, [2, 0, 6, 8, 0, 0, 0])
    assert np.asarray(at[0, 16:, 0]).min() >= 4 and np.bincount(at[0, 16:, 0])[4:].sum() == 16
    weights = np.bincount(np.asarray(at[0, :, 0]), np.exp(log_weight[0, :, 0]), minlength=7)
    near(weights[:4], [1, 0, 1, 1])  # each key stands for itself, on average
    near(weights[4:], [1, 1, 1], 0.3)
    none = sample_keys(draws, 0 * density, 4)[1]
    near(none, np.log([4 / 16] * 16 + [3 / 16] * 16)[None, :, None])


def test_blocks_of_a_grid_are_a_permutation_filled_up():
    blocks = grid_blocks((3, 4, 5), (2, 3, 2))
    order = blocks.order
    inside = order[order < 60]
    assert not blocks.full and blocks.size == 12 and blocks.length == 60
    assert len(order) == 2 * 2 * 3 * 12 and sorted(inside) == list(range(60))
    places = np.array(np.unravel_index(inside, (3, 4, 5))) // np.array([[2], [3], [2]])
    block = np.arange(len(order))[order < 60] // 12
    assert len(set(map(tuple, places.T))) == len(set(block)) == 12
    assert len({(*place, b) for *place, b in zip(*places, block, strict=True)}) == 12
    assert grid_blocks((4, 6), (2, 3)).full


@pytest.mark.parametrize("by_head", [False, True])
def test_means_are_over_the_tokens_there_are(by_head):
    x = np.array(draw(2, 7, 4, 3))
    x[0, 3, 1, 2] = np.nan
    order = np.array([6, 7, 2, 0, 7, 7, 3, 5], np.int32)  # blocks of 3, 3 and 2 places
    if by_head:
        order = np.stack([order, order[[3, 1, 2, 0, 5, 7, 4, 6]]], -1)[None].repeat(2, 0)
    blocks = BlockOrder(jnp.asarray(order) if by_head else order, 3, 7)
    want = np.zeros((2, 3, 4, 3))
    for b, u, n in np.ndindex(2, 3, 4):
        of = order[b, :, n // 2] if by_head else order
        there = [i for i in of[3 * u : 3 * u + 3] if i < 7]
        if there:
            want[b, u, n] = np.nan_to_num(x[b, there, n]).mean(0)
    np.testing.assert_allclose(blocks.means(x), want, atol=1e-6)


def test_results_go_back_to_their_tokens():
    """The mean over the places of a token; zero where it has none."""
    order = jnp.asarray(np.array([[2, 0, 3, 2], [1, 3, 0, 3]]).T[None])  # (1,4,2), 3: no token
    x = draw(1, 4, 2, 5)
    got = np.asarray(BlockOrder(order, 2, 3).restored(x))[0]
    np.testing.assert_allclose(got[2, 0], (x[0, 0, 0] + x[0, 3, 0]) / 2, atol=1e-6)
    np.testing.assert_allclose(got[0], np.stack([x[0, 1, 0], x[0, 2, 1]]), atol=1e-6)
    assert not got[1, 0].any() and not got[2, 1].any()
    np.testing.assert_allclose(got[1, 1], x[0, 0, 1], atol=1e-6)


def test_attention_to_all_blocks_in_another_order_is_attention():
    q, k, v = (draw(2, 15, heads, 4, seed=heads) for heads in (4, 2, 2))
    blocks = grid_blocks((3, 5), (2, 2))
    every = select.every_block(2, 24, 24, block_q=4, block_k=4)
    out = attend(
        *(blocks.take(x) for x in (q, k, v)),
        blocks=every,
        mask=blocks.seen(masks.causal, 15),
        q_positions=jnp.minimum(blocks.order, 14),
        k_positions=blocks.positions(1),
    )
    want = attend(q, k, v, mask=masks.causal)
    np.testing.assert_allclose(blocks.restored(out), want, atol=1e-5)


@pytest.mark.parametrize("S", [1, 2, 7, 33, 64])
def test_the_running_kth_smallest_is_that_of_the_sorted_prefix(S):
    rank = np.random.default_rng(S).permutation(S).astype(np.int32)
    for k in (1, 2, 5, S, S + 3):
        want = [sorted(rank[: i + 1])[k - 1] if i + 1 >= k else S for i in range(S)]
        assert np.array_equal(running_kth(jnp.asarray(rank), k), want)
