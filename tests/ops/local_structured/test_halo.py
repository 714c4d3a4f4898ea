"""Halo attention: the oracle, what a query sees, blocks of one cell, chunks of a text."""

import numpy as np
import pytest

from attnjax.ops.local_structured import halo_attention
from attnjax.ops.local_structured.grids import boxes
from tests.helpers import draw, draws, exact, near, qkv, run, weights_of
from tests.ops.plain import blend, weights

B, N, K, H = 2, 4, 2, 8


def halo_attention_oracle(q, k, v, shape, block, halo, tables=None):
    axes = len(shape)
    block, halo = (((x,) * axes if isinstance(x, int) else x) for x in (block, halo))
    cells, H, K, N = list(np.ndindex(*shape)), q.shape[-1], k.shape[2], q.shape[2]

    def near(i, j):
        for x, y, b, h in zip(cells[i], cells[j], block, halo, strict=True):
            first = x // b * b
            if not first - h <= y < first + b + h:
                return False
        return True

    def score(b, n, i, j):
        s = q[b, i, n] @ k[b, j, n * K // N] / np.sqrt(H)
        for a in range(axes if tables is not None else 0):
            s += q[b, i, n] @ tables[a][cells[j][a] - cells[i][a] + block[a] + halo[a] - 1]
        return s

    T = len(cells)
    seen = np.array([[near(i, j) for j in range(T)] for i in range(T)])
    return blend(weights(q, k, seen, logit=score), v)


def test_blocks_of_one_cell_are_a_sliding_window():
    q, k, v = qkv(B, 24, N, H, K=K)
    tables = draws((5, H), (5, H), seed=4)
    given = {"shape": (4, 6), "block": 1, "halo": 2}
    seen = weights_of(halo_attention, q, k, **given)[0, 0] > 0
    assert [seen[i].sum() for i in (0, 6, 14, 17)] == [9, 12, 20, 12]
    want = halo_attention_oracle(*exact((q, k, v)), **given, tables=exact(tables))
    near(run(halo_attention, q, k, v, tuple(tables), **given), want)


def test_a_line_and_a_cuboid():
    for shape, block, halo in (((11,), 4, 2), ((2, 3, 4), (1, 2, 2), (1, 0, 1))):
        q, k, v = qkv(B, int(np.prod(shape)), N, H, K=K)
        both = np.broadcast_to(block, len(shape)) + np.broadcast_to(halo, len(shape))
        tables = tuple(draws(*((2 * n - 1, H) for n in both), seed=4))
        given = {"shape": shape, "block": block, "halo": halo}
        want = halo_attention_oracle(*exact((q, k, v)), **given, tables=exact(tables))
        near(run(halo_attention, q, k, v, tables, **given), want)


def test_chunks_of_a_text_by_the_recipe():
    """One layer in a chunk: its tokens read five more on either side."""
    x = draw(B, 23, 3)
    cut = boxes((23,), 8, halo=5)
    chunks = np.asarray(cut.take_keys(x))
    there = np.tile(cut.parts[1] == cut.parts[0][0, 0], (B, 1))
    mean = lambda i: chunks[i][there[i]].mean(0)
    y = np.stack([np.broadcast_to(mean(i), (18, 3)) for i in range(len(chunks))])
    got = np.asarray(cut.restored(y[:, 5:13]))
    for t in range(23):
        first = t // 8 * 8
        near(got[:, t], np.asarray(x)[:, max(first - 5, 0) : first + 13].mean(1))


def test_tables_of_another_size_are_refused():
    q, k, v = qkv(B, 24, N, H, K=K)
    with pytest.raises(ValueError, match=r"tables: shapes .*; expected \(\(9, 8\), \(9, 8\)\)"):
        halo_attention(q, k, v, tuple(draws((9, H), (7, H))), shape=(4, 6), block=2, halo=3)
