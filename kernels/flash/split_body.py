# type: ignore
"""Attention of a few queries, by keys: what goes behind `body` in its programs.

Heads alone give too few programs.  The tiles of all examples and key heads, in a line, are dealt
evenly to the programs (stream-K): a program may serve several heads, a head be served by several
programs.  Program p leaves its part of head s in slot p + s: each step along the line goes on to
the next program or the next head, so no two share a slot.
"""

import triton
import triton.language as tl


@triton.jit
def split(q, k, v, scale, xs, ms, ps, q_pos, k_pos, bounds, entries, ends, starts, heads, m_part,
          sums_part, part):  # fmt: skip
    """What each program's share of the tiles leaves behind.

    The tiles of head s are ends[s] .. ends[s + 1] of the line, program p's share starts[p] ..
    starts[p + 1], which begins in head heads[p].
    """
    number = tl.program_id(0)
    place, stop = tl.load(starts + number), tl.load(starts + number + 1)
    one = tl.load(heads + number)
    rows_here = tl.arange(0, BM)[:, None]
    while place < stop:
        b, kh = one // K, one % K
        begin = tl.load(ends + one)
        end = tl.minimum(tl.load(ends + one + 1), stop)
        low, middle, high = list_of(bounds, b, kh * (N // K), 0, 1)
        t, inside, n = rows_of(0, kh)
        qt = read(q, b, t, n, Q_EACH, N, H, HP)
        sc = tl.load(scale + b * SCALE_EACH)
        p = params(b, n, ps)
        tq = position(q_pos, b, n, t, QPOS_B, QPOS_N, T)
        m = start(p, tl.full((BM, 1), LOWEST, tl.float32))
        sums = no_sums(tl.full((BM, 1), 0.0, tl.float32))
        acc = tl.full((BM, DP), 0.0, tl.float32)
        first, last = low + place - begin, low + end - begin
        for i in range(first, tl.minimum(last, middle)):
            m, sums, acc = forward_tile(tl.load(entries + i), qt, k, v, sc, xs, ms, p, (), k_pos,
                                        b, n, kh, t, tq, m, sums, acc, False)  # fmt: skip
        for i in range(tl.maximum(first, middle), last):
            m, sums, acc = forward_tile(tl.load(entries + i), qt, k, v, sc, xs, ms, p, (), k_pos,
                                        b, n, kh, t, tq, m, sums, acc, True)  # fmt: skip
        slot = (number + one).to(tl.int64) * BM + rows_here
        tl.store(m_part + slot, m)
        store_rows(sums_part, sums, slot, rows_here < BM)
        tl.store(part + slot * DP + tl.arange(0, DP)[None, :], acc)
        place = end
        one += 1


@triton.jit
def combine(m_part, sums_part, part, first, last, ps, out, m_out, sums_out):
    """The parts of a head, merged in order: those of programs first[s] .. last[s] - 1."""
    kh, b = tl.program_id(0), tl.program_id(1)
    one = b * K + kh
    t, inside, n = rows_of(0, kh)
    p = params(b, n, ps)
    m = start(p, tl.full((BM, 1), LOWEST, tl.float32))
    sums = no_sums(tl.full((BM, 1), 0.0, tl.float32))
    acc = tl.full((BM, DP), 0.0, tl.float32)
    for number in range(tl.load(first + one), tl.load(last + one)):
        slot = (number + one).to(tl.int64) * BM + tl.arange(0, BM)[:, None]
        more = tl.load(m_part + slot)
        top = tl.maximum(m, more)
        here, there = rescale(m, top), rescale(more, top)
        sums = merge_sums(sums, load_sums(sums_part, slot), here, there)
        acc = acc * here + tl.load(part + slot * DP + tl.arange(0, DP)[None, :]) * there
        m = top
    at_rows = row_of(b, n, t)
    tl.store(m_out + at_rows, m, mask=inside)
    store_rows(sums_out, sums, at_rows, inside)
    result = finish(acc, sums, tl.where(m <= LOWEST, 0.0, m), p)
    write(out, result, b, t, inside, n, T, N, D, DP)
