"""Masks and operands of mods where a call has some of a text's tokens: rows of the whole call."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, masks, mods, select
from attnjax.core.pairwise.blockwise import Blockwise
from tests.helpers import close, draw

B, T, N, K, H = 2, 32, 4, 2, 4
AT = [7, 19, 23, 24]  # the queries that a chunk has
q, k, v = draw(B, T, N, H), draw(B, T, K, H, seed=1), draw(B, T, K, H, seed=2)
rng = np.random.default_rng(3)
IDS, ROWS = np.repeat([0, 1, 2, 3], 8), rng.random((T, T)) < 0.6
EACH = np.stack([IDS, np.repeat([0, 1], 16)])
HEADS = rng.random((B, N, T, T)) < 0.6
LAYOUT, LAST = rng.random((8, 8)) < 0.6, rng.integers(0, T, (1, N, T))
# the mask of the whole text, and one with arrays of the chunk
CASES = {
    "documents": (
        masks.causal & masks.document(IDS), masks.causal & masks.document(IDS[AT], IDS)
    ),
    "documents of each example": (
        masks.document(EACH) & masks.causal, masks.document(EACH[:, AT], EACH) & masks.causal
    ),
    "array": (masks.array(ROWS), masks.array(ROWS[AT])),
    "array of each head": (
        masks.causal | ~masks.array(HEADS), masks.causal | ~masks.array(HEADS[:, :, AT])
    ),
    "one of each": (
        masks.array(ROWS) & masks.document(IDS) | masks.sinks(1),
        masks.array(ROWS[AT]) & masks.document(IDS) | masks.sinks(1),
    ),
    "layout": (masks.block_layout(LAYOUT, 4, 4), None),
    "until": (masks.until(LAST) & masks.causal, None),
    "neighborhood": (masks.neighborhood((8, 4), (3, 3)), None),
    "causal_to_end": (masks.causal_to_end, None),
    "lengths": (masks.lengths(q=[20, 32], k=[15, 32]), None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("impl", ["dense", Blockwise(3, 7)], ids=["dense", "blockwise"])
def test_a_chunk_is_rows_of_the_whole_call(name, impl):
    text, own = CASES[name]
    want = attend(q, k, v, mask=text, impl="dense")[:, AT]
    for mask in filter(lambda m: m is not None, (text, own)):
        run = lambda at, m=mask: attend(q[:, AT], k, v, mask=m, q_positions=at, impl=impl)
        close(run(AT), want, 2e-6)
        close(jax.jit(run)(jnp.asarray(AT)), want, 2e-6)


def test_keys_of_a_chunk_under_selected_blocks():
    """Keys 8 .. 23 of the text, all blocks of them."""
    part = np.arange(8, 24)
    chosen = select.every_block(B, len(AT), len(part), block_q=2, block_k=4)
    want = attend(
        q,
        k,
        v,
        mask=masks.document(IDS) & masks.array((part[:, None] == np.arange(T)).any(0)[None]),
    )
    for ids in ((IDS[AT], IDS[part]), (IDS, IDS)):
        got = attend(
            q[:, AT], k[:, part], v[:, part], mask=masks.document(*ids), blocks=chosen,
            q_positions=AT, k_positions=part,
        )  # fmt: skip
        close(got, want[:, AT], 2e-6)


def test_several_queries_at_one_position_keep_their_own_rows():
    """Branches of a tree of drafts; positions of the text's length, repeated or not."""
    at = np.asarray([5, 6, 6, 7])
    rows = ROWS[[1, 9, 20, 30]]
    want = attend(q[:, :4], k, v, mask=masks.array(rows), impl="dense")
    for impl in ("dense", Blockwise(2, 8)):
        run = lambda at, impl=impl: attend(
            q[:, :4], k, v, mask=masks.array(rows), q_positions=at, impl=impl
        )
        close(jax.jit(run)(at), want, 2e-6)


def test_the_whole_text_in_another_order_reads_its_arrays_at_positions():
    order = np.random.default_rng(0).permutation(T)
    mask = masks.causal & masks.document(IDS)
    want = attend(q, k, v, mask=mask)[:, order]
    run = lambda at: attend(
        q[:, order], k[:, order], v[:, order], mask=mask, q_positions=at, k_positions=at
    )
    close(run(order), want, 2e-6)
    close(jax.jit(run)(order), want, 2e-6)


def test_tiles_of_a_chunk_are_skipped_by_its_own_arrays():
    """Kinds of rectangles, from the smallest and largest position in each, in any order."""
    at = np.random.default_rng(0).permutation(T)[:13]
    side = masks.Side("T", 13, at), masks.Side("S", T, None)
    mask = masks.for_call(masks.causal & masks.document(IDS[at], IDS), 1, 1, *side)
    assert mask.by_row
    dense = mask.allowed(np.arange(13)[:, None], np.arange(T)[None])
    np.testing.assert_array_equal(dense, (IDS[at][:, None] == IDS) & (np.arange(T) <= at[:, None]))
    tiles = masks.tile_kinds(mask, 13, T, 4, 4, None, None)
    for i in range(4):
        for j in range(8):
            part = dense[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            assert tiles[i, j] in (masks.PARTIAL, int(part.any()) + int(part.all()))
    assert (tiles == masks.EMPTY).any()


BIAS, PER_QUERY = draw(B, N, T, T, seed=5), draw(B, T, N, seed=6)
TABLE = draw(B, T, N, 5, seed=7)
MODS = {
    "pair": (mods.pair_bias(BIAS), mods.pair_bias(BIAS[:, :, AT])),
    "query": (
        mods.mod(jnp.multiply, query=PER_QUERY),
        mods.mod(jnp.multiply, query=PER_QUERY[:, AT]),
    ),
    "query table": (mods.query_relative(TABLE), mods.query_relative(TABLE[:, AT])),
    "forget": (mods.forget(-jnp.abs(PER_QUERY)), None),
}


@pytest.mark.parametrize("name", MODS)
def test_operands_of_a_text_are_read_at_positions(name):
    text, own = MODS[name]
    want = attend(q, k, v, mods=(text,), mask=masks.causal)[:, AT]
    for mod in filter(lambda m: m is not None, (text, own)):
        run = lambda at, m=mod: attend(
            q[:, AT], k, v, mods=(m,), mask=masks.causal, q_positions=at, impl=Blockwise(2, 8)
        )
        close(run(AT), want, 5e-6)
        close(jax.jit(run)(np.asarray(AT)), want, 5e-6)


def test_a_traced_position_beyond_an_operand_is_nan():
    run = jax.jit(lambda at: attend(q[:, :2], k, v, mods=(MODS["query"][0],), q_positions=at))
    out = run(np.asarray([3, T]))
    assert not np.isnan(out[:, 0]).any() and np.isnan(out[:, 1]).all()


def chunk(mask=masks.everything, at=(23, 24), **more):
    return lambda: attend(q[:, 23:25], k, v, mask=mask, q_positions=at, **more)


WRONG = {
    "ids that end before": (chunk(masks.document(IDS[:20], IDS)), "holds all of q_positions"),
    "too few ids": (chunk(masks.document(IDS[:1], IDS)), "q_ids of shape (1,)"),
    "ids of no chunk": (chunk(masks.document(IDS), None), "document: q_ids has shape (32,)"),
    "rows that end before": (chunk(masks.array(ROWS[:5])), "mask of shape (5, 32)"),
    "keys' ids": (chunk(masks.document(IDS[:2], IDS[:30])), "expected S = 32"),
    "a grid that ends before": (chunk(masks.neighborhood((4, 5), 3)), "of 20 cells"),
    "a layout that ends before": (chunk(masks.block_layout(LAYOUT[:5], 4, 4)), "layout (5, 8)"),
    "negative": (chunk(masks.document(IDS), (-1, 3)), "which are -1 .. 3"),
    "an operand that ends before": (
        chunk(mods=(mods.mod(jnp.add, query=PER_QUERY[:, :9]),)), "which are 23 .. 24"
    ),
    "examples": (chunk(masks.document(np.stack([IDS] * 3))), "3 examples and 1 heads"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_arrays_that_fit_neither_chunk_nor_text_are_refused(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)


OTHERS = {
    "examples": masks.prefix([3, 3, 3]),
    "heads": masks.array(np.ones((1, 3, T, T), bool)),
    "heads of a layout": masks.causal & masks.block_layout(np.ones((2, 8, 8), bool), 4, 4),
    "traced": masks.lengths(k=[40, 40, 40]),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("impl", ["dense", "blockwise"])
def test_masks_of_other_examples_or_heads_are_refused_though_tiles_are_full(name, impl):
    run = lambda mask: attend(q, k, v, mask=mask, impl=impl)
    with pytest.raises(ValueError, match="expected B = 2 or one for all, and N = 4 or one"):
        (jax.jit(run) if name == "traced" else run)(OTHERS[name])


def test_masks_are_neither_true_nor_false():
    for use in (lambda m: m and m, lambda m: m or m, lambda m: not m, lambda m: 1 if m else 0):
        for mask in (masks.causal, masks.everything, masks.causal & masks.document(IDS)):
            with pytest.raises(TypeError, match="join masks by &, | and ~"):
                use(mask)


def test_keys_positions_alone_leave_causal_to_end_its_end():
    want = attend(q[:, :4], k, v, mask=masks.causal_to_end)
    at = np.arange(T)
    close(attend(q[:, :4], k, v, mask=masks.causal_to_end, k_positions=at), want, 1e-6)
    with pytest.raises(ValueError, match="causal_to_end: k_positions are traced"):
        jax.jit(lambda at: attend(q, k, v, mask=masks.causal_to_end, k_positions=at))(at)


def test_tiles_of_an_array_need_little_memory():
    mask = masks.array(np.tri(2048, dtype=bool))  # 4 MiB
    tracemalloc.start()
    tiles = mask.tiles(2048, 2048, 128, 128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(tiles, masks.causal.tiles(2048, 2048, 128, 128))
    assert peak < 6 * 2**22
