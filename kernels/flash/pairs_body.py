# type: ignore
"""Cotangents of operands of pairs, and of tables: what goes behind `body` in its programs."""

import triton
import triton.language as tl


@triton.jit
def pair_tile(q, k, v, g, scale, r, dL, m, stats, more, xs, ms, ps, q_pos, k_pos, b, n, first_t,
              first_j):  # fmt: skip
    """The cotangent of one operand of pairs, for a tile of one head; zero beyond the ends."""
    t = first_t + tl.arange(0, BM)[:, None]
    j = first_j + tl.arange(0, BN)[None, :]
    inside = (t < T) & (j < S)
    t, j = tl.minimum(t, T - 1), tl.minimum(j, S - 1)
    kh = n * K // N
    at_rows = row_of(b, n, t)
    qt = read(q, b, t, n, Q_EACH, N, H, HP)
    gt = read(g, b, t, n, T * N * D, N, D, DP).to(qt.dtype)
    kt = read(k, b, tl.trans(j), kh, K_EACH, K, H, HP)
    vt = read(v, b, tl.trans(j), kh, V_EACH, K, D, DP)
    rr, ll, mm = tl.load(r + at_rows), tl.load(dL + at_rows), tl.load(m + at_rows)
    raw = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * tl.load(scale + b * SCALE_EACH)
    df = tl.dot(gt, tl.trans(vt), input_precision=PRECISION) * rr
    tq = position(q_pos, b, n, t, QPOS_B, QPOS_N, T)
    at = (b, n, t, j, tq, position(k_pos, b, n, j, KPOS_B, KPOS_N, S))
    here, also = load_rows(stats, at_rows), load_more(more, at_rows)
    ok, w, d, by_terms, by_row, by_column, by_pair = back(
        raw, df, ll, mm, here, also, params(b, n, ps), allowed(at, ms) & inside, at, xs, True
    )  # fmt: skip
    return tl.broadcast_to(pair_gradient(by_pair), raw.shape)


@triton.jit
def pairs(q, k, v, g, scale, r, dL, m, stats, more, xs, ms, ps, q_pos, k_pos, out,
          OUT_B: tl.constexpr, OUT_N: tl.constexpr):  # fmt: skip
    """The cotangent of an operand of every pair, (OUT_B,OUT_N,T,S), by tiles; O(T S) memory."""
    first_t, first_j, one = tl.program_id(0) * BM, tl.program_id(1) * BN, tl.program_id(2)
    total = tl.full((BM, BN), 0.0, tl.float32)
    for each in range((B // OUT_B) * (N // OUT_N)):  # those that share the operand
        b = one // OUT_N * (B // OUT_B) + each // (N // OUT_N)
        n = one % OUT_N + each % (N // OUT_N)
        total += pair_tile(q, k, v, g, scale, r, dL, m, stats, more, xs, ms, ps, q_pos, k_pos, b, n,
                           first_t, first_j)  # fmt: skip
    t = first_t + tl.arange(0, BM)[:, None]
    j = first_j + tl.arange(0, BN)[None, :]
    where = (one.to(tl.int64) * T + t) * S + j
    tl.store(out + where, total, mask=(t < T) & (j < S))


@triton.jit
def diagonals(q, k, v, g, scale, r, dL, m, stats, more, xs, ms, ps, q_pos, k_pos, out,
              OUT_B: tl.constexpr, OUT_N: tl.constexpr):  # fmt: skip
    """The same where only j - t counts: summed over the tiles of a diagonal, (.., diagonals,BM,BN).

    Tiles are square, so those of a diagonal hold the same distances at the same places.
    """
    step, one = tl.program_id(0) - (T + BM - 1) // BM + 1, tl.program_id(1)
    total = tl.full((BM, BN), 0.0, tl.float32)
    low = tl.maximum(0, -step)
    high = tl.minimum((T + BM - 1) // BM, (S + BN - 1) // BN - step)
    for each in range((B // OUT_B) * (N // OUT_N)):
        b = one // OUT_N * (B // OUT_B) + each // (N // OUT_N)
        n = one % OUT_N + each % (N // OUT_N)
        for row in range(low, high):
            total += pair_tile(q, k, v, g, scale, r, dL, m, stats, more, xs, ms, ps, q_pos, k_pos,
                               b, n, row * BM, (row + step) * BN)  # fmt: skip
    where = one * tl.num_programs(0) + tl.program_id(0)
    i = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
    tl.store(out + where.to(tl.int64) * (BM * BN) + i, total)
