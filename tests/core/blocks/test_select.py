"""How blocks are chosen: by number, share, threshold, cluster; and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import (
    select,
)
from tests.core.blocks.inputs import B, H, K, N, T, qkv
from tests.helpers import close, draw


def test_constructors_refuse_what_cannot_be():
    scores = draw(B, T, N, 5, seed=0)
    for k in (0, -1, True, 2.0):
        with pytest.raises(ValueError, match="k is .*, expected an integer of at least 1"):
            select.top_k(scores, k, block_k=4)
    for p in (0, 1.5, -0.1):
        with pytest.raises(ValueError, match=r"expected a share in \(0, 1\]"):
            select.top_p(jnp.abs(scores), p, block_k=4)
    with pytest.raises(ValueError, match="most is 0"):
        select.threshold(scores, 0.5, most=0, block_k=4)
    with pytest.raises(ValueError, match="size is 14, expected an integer from 1 to T = 13"):
        select.clusters(draw(B, N, 3, T, seed=0), 14)
    with pytest.raises(ValueError, match="a multiple of 3"):
        select.over_group(scores, 3)
    with pytest.raises(ValueError, match="a multiple of order's X = 3"):
        select.take_tokens(draw(B, T, N, H, seed=0), jnp.zeros((B, T, 3), int))


def sets(selection):
    """The selected blocks of each row, as sets."""
    indices, valid = np.asarray(selection.indices), np.asarray(selection.valid)
    return {at: set(indices[at][valid[at]].tolist()) for at in np.ndindex(valid.shape[:-1])}


def test_top_k_takes_the_largest_and_never_minus_infinity():
    scores = jnp.array([[[[1.0, 5.0, -jnp.inf, 3.0]], [[-jnp.inf, 2.0, -jnp.inf, jnp.inf]]]])
    assert list(sets(select.top_k(scores, 3, block_k=4)).values()) == [{0, 1, 3}, {1, 3}]


def test_what_is_asked_for_beyond_all_blocks_is_all():
    scores = draw(B, T, N, 5, seed=0)
    every = select.top_k(scores, 5, block_k=4)
    assert select.top_k(scores, 6, block_k=4) == every
    assert select.threshold(scores, -jnp.inf, most=9, block_k=4) == every


def test_top_p_is_the_smallest_set_that_reaches_the_share():
    mass = jax.nn.softmax(2 * draw(B, 5, 2, 7, seed=3))
    for at, chosen in sets(select.top_p(mass, 0.8, block_k=4)).items():
        row = np.asarray(mass[at])
        assert row[list(chosen)].sum() >= 0.8 - 1e-6
        assert row[list(chosen)].sum() - row[list(chosen)].min() < 0.8
        assert min(row[list(chosen)]) >= max([row[j] for j in range(7) if j not in chosen] + [0])
    assert all(len(x) == 7 for x in sets(select.top_p(mass, 1.0, block_k=4)).values())
    assert all(len(x) <= 2 for x in sets(select.top_p(mass, 0.99, most=2, block_k=4)).values())
    always = select.top_p(mass.at[..., 3].set(jnp.inf), 0.1, block_k=4)
    assert all(3 in x for x in sets(always).values())


def test_top_p_of_head_spends_the_share_of_the_whole_head():
    mass = jax.nn.softmax(3 * draw(B, 5, 2, 7, seed=4)) * jnp.arange(1.0, 6.0)[:, None, None]
    chosen = sets(select.top_p_of_head(mass, 0.7, block_k=4))
    for b, x in np.ndindex(B, 2):
        head = np.asarray(mass[b, :, x])
        kept = np.array([[j in chosen[b, u, x] for j in range(7)] for u in range(5)])
        assert head[kept].sum() >= 0.7 * head.sum() - 1e-5
        assert head[kept].sum() - head[kept].min() < 0.7 * head.sum()
        assert head[kept].min() >= head[~kept].max()
    counts = {len(x) for x in chosen.values()}
    assert len(counts) > 1  # rows get what they deserve
    assert all(len(x) == 7 for x in sets(select.top_p_of_head(mass, 1.0, block_k=4)).values())


def test_threshold_keeps_what_reaches_it():
    scores = draw(B, 3, 1, 6, seed=5)
    for at, chosen in sets(select.threshold(scores, 0.3, block_k=4)).items():
        assert chosen == {j for j in range(6) if scores[at][j] >= 0.3}


def test_causal_scores_settle_own_and_later_blocks():
    scores = jnp.ones((1, 5, 1, 4))
    # query blocks 0-2, 3-5, 6-8, ... and key blocks 0-3, 4-7, 8-11, ...
    got = np.asarray(select.causal_scores(scores, 3, 4))[0, :, 0]
    i = np.inf
    want = [[i, -i, -i, -i], [i, i, -i, -i], [1, i, i, -i], [1, 1, i, -i], [1, 1, 1, i]]
    assert np.array_equal(got, want)


def test_scores_of_blocks():
    q, k, _ = qkv()
    means = select.mean_pool(k, 4)
    close(means[:, 2], k[:, 8:].mean(1), 1e-6)  # the last block has three tokens
    scores = select.dot_scores(q, means)
    close(scores[1, 6, 3, 1], q[1, 6, 3] @ k[1, 4:8, 1].mean(0), 1e-5)
    close(select.over_group(scores, 2)[1, 6, 1], scores[1, 6, 2] + scores[1, 6, 3], 1e-6)


def test_clusters_and_buckets_are_tokens_in_another_order():
    scores = draw(B, N, 3, T, seed=6)
    members = np.asarray(select.clusters(scores, 4))
    for b, x, c in np.ndindex(B, N, 3):
        best = np.sort(np.argsort(-np.asarray(scores[b, x, c]))[:4])
        assert np.array_equal(members[b, 4 * c : 4 * c + 4, x], best)
    codes = jnp.asarray(np.random.default_rng(1).integers(0, 3, (B, T, K)))
    order = select.bucket_order(codes)
    sorted_codes = np.take_along_axis(np.asarray(codes), np.asarray(order), 1)
    assert (np.diff(sorted_codes, axis=1) >= 0).all()
    x = draw(B, T, N, H, seed=2)
    taken = select.take_tokens(x, order)
    assert np.array_equal(taken[1, 4, 3], x[1, order[1, 4, 1], 3])
