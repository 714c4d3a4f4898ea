# type: ignore
"""Flash attention in Triton: the loops.  As it stands, plain causal softmax; see the holes.

A program owns a tile of queries (or of keys) and walks the tiles of keys (or of queries) that its
list names: first FULL ones, which are not masked, then PARTIAL ones.  Nothing is shared between
programs: no atomics, and results are bit-equal from run to run.

Arrays: q (B,T,N,H), k (B,S,K,H), v (B,S,K,D), rows (B,N,T), positions (B|1,X|1,T).  s is a tile of
scores, (BM,BN), what rides with its queries (BM,1), with its keys (1,BN); transposed in `columns`.
`at` says where a tile is:

    (b, n, t, j, tq, tk)    example, head, numbers of queries and of keys, and their positions

Numbers beyond the end are moved to the last token, so that all reads are of real tokens; `ok` tells
which pairs count.  Every function under "holes" is replaced by what a call needs (`pieces`): tuples
of operands and of sums are of any length, and only the holes know which.
"""

import triton
import triton.language as tl

constant = (lambda x: x) if triton.knobs.runtime.interpret else tl.constexpr

# ---------------------------------------------------------------- letters, set by each program

B = T = S = N = K = H = D = constant(1)
HP = DP = constant(16)  # H and D rounded up to powers of two
BM = BN = constant(16)  # sizes of a tile
ROWS = COLS = constant(16)  # of the blocks that lists speak of: one or more tiles, the last cut
PACK = constant(1)  # query heads in a tile, of one key head: more than one where keys are split
Q_EACH = K_EACH = V_EACH = SCALE_EACH = constant(0)  # from one example to the next
LISTS_B = LISTS_N = constant(1)  # examples and heads that have lists of their own
ENTRIES = constant(0)  # of the list of an example
QPOS_B = QPOS_N = KPOS_B = KPOS_N = constant(1)  # examples and heads with positions of their own
PRECISION = constant("ieee")
PEAKED = constant(True)  # there is a reference to follow
WEIGHS = constant(True)  # the first term weighs v
HIDES = constant(False)  # scores may be -inf, the terms of which are not zero: they are masked
LOWEST = constant(-8.507059173023462e37)  # the least float32 over four: differences are finite


# ------------------------------------------------------------------------------------- holes


@triton.jit
def score(s, at, xs):
    """The score after all mods, of operands xs."""
    return s


@triton.jit
def score_back(s, d, at, xs):
    """Cotangents: of s, and tiles of those of operands, to be summed by rows, columns, or not."""
    return d, (), (), ()


@triton.jit
def allowed(at, ms):
    """Whether the pairs may attend."""
    return at[4] >= at[5]


@triton.jit
def params(b, n, ps):
    """The normalizer's parameters."""
    return ()


@triton.jit
def start(p, empty):
    """The reference that rows start from."""
    return empty


@triton.jit
def peak(s):
    return s


@triton.jit
def rescale(old, new):
    return tl.exp(old - new)


@triton.jit
def terms(s, m, stats, p):
    """What is summed over the keys; where v is weighed, the first is the weight."""
    w = tl.exp(s - m)
    return (w, w)


@triton.jit
def finish(values, sums, m, p):
    """Rows of results."""
    return tl.where(sums[0] == 0, 0.0, values / tl.where(sums[0] == 0, 1.0, sums[0]))


@triton.jit
def terms_back(s, m, stats, p, more, df, dL):
    """The weight; the cotangent of s; tiles of those of statistics or parameters."""
    w = tl.exp(s - m)
    return w, w * (df + dL), ()


@triton.jit
def load_rows(pointers, where):
    return ()


@triton.jit
def load_more(pointers, where):
    """Of the last stage: its reference, the statistics before it, the cotangents of its sums."""
    return ()


@triton.jit
def load_sums(pointers, where):
    return (tl.load(pointers[0] + where),)


@triton.jit
def store_rows(pointers, values, where, inside):
    tl.store(pointers[0] + where, values[0], mask=inside)


@triton.jit
def no_sums(empty):
    return (empty,)


@triton.jit
def add_terms(sums, new, rescaled):
    return (sums[0] * rescaled + tl.sum(new[1], 1)[:, None],)


@triton.jit
def merge_sums(a, b, rescaled_a, rescaled_b):
    return (a[0] * rescaled_a + b[0] * rescaled_b,)


@triton.jit
def zero_masked(ok, new):
    return (tl.where(ok, new[0], 0.0), tl.where(ok, new[1], 0.0))


@triton.jit
def no_gradients(empty):
    """Sums of tiles of cotangents: by rows here, by columns in `columns`."""
    return ()


@triton.jit
def add_gradients(sums, by_terms, by_score, ok):
    return sums


@triton.jit
def store_gradients(pointers, values, where, inside):
    pass


@triton.jit
def pair_gradient(by_pair):
    """The one whose tile is stored."""
    return by_pair[0]


# ----------------------------------------------------------------------------- parts of a call


@triton.jit
def read(x, b, index, head, EACH: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
         PAD: tl.constexpr):  # fmt: skip
    """Tokens `index` (BM,1) of a head of an array (B|1,length,HEADS,WIDTH): (BM,PAD)."""
    h = tl.arange(0, PAD)[None, :]
    where = x + b.to(tl.int64) * EACH + index.to(tl.int64) * (HEADS * WIDTH) + head * WIDTH + h
    if PAD == WIDTH:
        tokens = tl.load(where)
    else:
        tokens = tl.load(where, mask=h < WIDTH, other=0.0)
    return tokens


@triton.jit
def write(x, values, b, index, inside, head, LENGTH: tl.constexpr, HEADS: tl.constexpr,
          WIDTH: tl.constexpr, PAD: tl.constexpr):  # fmt: skip
    """Puts (BM,PAD) where `read` takes it, in an array (B,LENGTH,HEADS,WIDTH)."""
    h = tl.arange(0, PAD)[None, :]
    row = b.to(tl.int64) * LENGTH + index
    where = x + row * (HEADS * WIDTH) + head * WIDTH + h
    tl.store(where, values.to(x.dtype.element_ty), mask=inside & (h < WIDTH))


@triton.jit
def row_of(b, n, t):
    """Where rows stand in an array (B,N,T)."""
    return (b.to(tl.int64) * N + n) * T + t


@triton.jit
def position(x, b, n, index, IN_B: tl.constexpr, IN_N: tl.constexpr, LENGTH: tl.constexpr):
    """Positions of tokens, from an array (IN_B,IN_N,LENGTH) or None: their numbers."""
    if x is None:
        found = index
    else:
        example = b if IN_B > 1 else 0
        found = tl.load(x + (example * IN_N + n * IN_N // N) * LENGTH + index)
    return found


@triton.jit
def list_of(bounds, b, n, block, BLOCKS: tl.constexpr):
    """A block's part of the list: where its FULL tiles start and end, and its PARTIAL ones end."""
    example = b if LISTS_B > 1 else 0
    where = bounds + ((example * LISTS_N + n * LISTS_N // N) * BLOCKS + block) * 3
    first = example * ENTRIES
    return first + tl.load(where), first + tl.load(where + 1), first + tl.load(where + 2)


@triton.jit
def tile_start(number, BLOCK: tl.constexpr, SIZE: tl.constexpr):
    """(first token, end of its block) of the tile of this number."""
    each = (BLOCK + SIZE - 1) // SIZE
    block = number // each
    return block * BLOCK + number % each * SIZE, block * BLOCK + BLOCK


@triton.jit
def rows_of(number, head):
    """Queries of a tile, (BM,1): numbers, which of them count, and their heads."""
    first, end = tile_start(number, ROWS, BM // PACK)
    i = tl.arange(0, BM)[:, None]
    t = first + i % (BM // PACK)
    inside = t < tl.minimum(end, T)
    t = tl.minimum(t, T - 1)
    if PACK == 1:
        n = head
    else:
        n = head * (N // K) + i // (BM // PACK)
        inside = inside & (n < (head + 1) * (N // K))
        n = tl.minimum(n, (head + 1) * (N // K) - 1)
    return t, inside, n


# ------------------------------------------------------------------------------------- forward


@triton.jit
def forward_tile(column, qt, k, v, sc, xs, ms, p, stats, k_pos, b, n, kh, t, tq, m, sums, acc,
                 MASKED: tl.constexpr):  # fmt: skip
    """The state after one more tile."""
    j = column + tl.arange(0, BN)
    seen = j
    if MASKED:
        j = tl.minimum(j, S - 1)
    kt = read(k, b, j[:, None], kh, K_EACH, K, H, HP)
    raw = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * sc
    at = (b, n, t, j[None, :], tq, position(k_pos, b, n, j[None, :], KPOS_B, KPOS_N, S))
    s = tl.broadcast_to(score(raw, at, xs), raw.shape)
    ok = seen[None, :] < S
    if MASKED:
        end = tl.minimum(column // COLS * COLS + COLS, S)
        ok = allowed(at, ms) & (seen[None, :] < end)
    if HIDES:
        ok = ok & (s != -float("inf"))
    new = m
    rescaled = tl.full((BM, 1), 1.0, tl.float32)
    if PEAKED:
        top = peak(s)
        if MASKED or HIDES:
            top = tl.where(ok, top, LOWEST)
        new = tl.maximum(m, tl.max(top, 1)[:, None])
        rescaled = rescale(m, new)
    here = tl.where(new <= LOWEST, 0.0, new)
    if MASKED or HIDES:
        s = tl.where(ok, s, here)
    ts = terms(s, here, stats, p)
    if MASKED or HIDES:
        ts = zero_masked(ok, ts)
    sums = add_terms(sums, ts, rescaled)
    if WEIGHS:
        vt = read(v, b, j[:, None], kh, V_EACH, K, D, DP)
        acc = tl.dot(ts[0].to(vt.dtype), vt, acc * rescaled, input_precision=PRECISION)
    return new, sums, acc


@triton.jit
def forward(q, k, v, scale, xs, ms, ps, stats, q_pos, k_pos, bounds, entries, out, m_out, sums_out,
            ROW_TILES: tl.constexpr, BLOCKS: tl.constexpr):  # fmt: skip
    """A tile of queries against its keys: results, references and sums of terms."""
    number = ROW_TILES - 1 - tl.program_id(0)  # under a causal mask the last have most to do
    n, b = tl.program_id(1), tl.program_id(2)
    t, inside, n = rows_of(number, n)
    kh = n * K // N
    at_rows = row_of(b, n, t)
    qt = read(q, b, t, n, Q_EACH, N, H, HP)
    sc = tl.load(scale + b * SCALE_EACH)
    p = params(b, n, ps)
    here = load_rows(stats, at_rows)
    tq = position(q_pos, b, n, t, QPOS_B, QPOS_N, T)
    m = start(p, tl.full((BM, 1), LOWEST, tl.float32))
    sums = no_sums(tl.full((BM, 1), 0.0, tl.float32))
    acc = tl.full((BM, DP), 0.0, tl.float32)
    block = number // ((ROWS + BM - 1) // BM)
    low, middle, high = list_of(bounds, b, n, block, BLOCKS)
    for i in range(low, middle):
        m, sums, acc = forward_tile(tl.load(entries + i), qt, k, v, sc, xs, ms, p, here, k_pos,
                                    b, n, kh, t, tq, m, sums, acc, False)  # fmt: skip
    for i in range(middle, high):
        m, sums, acc = forward_tile(tl.load(entries + i), qt, k, v, sc, xs, ms, p, here, k_pos,
                                    b, n, kh, t, tq, m, sums, acc, True)  # fmt: skip
    tl.store(m_out + at_rows, m, mask=inside)
    store_rows(sums_out, sums, at_rows, inside)
    if WEIGHS:
        result = finish(acc, sums, tl.where(m <= LOWEST, 0.0, m), p)
        write(out, result, b, t, inside, n, T, N, D, DP)


# ------------------------------------------------------------------------------------ backward


@triton.jit
def back(raw, df, dL, m, stats, more, p, ok, at, xs, MASKED: tl.constexpr):
    """What is allowed of a tile, its weights, the cotangent of its raw scores, and others."""
    s = tl.broadcast_to(score(raw, at, xs), raw.shape)
    if HIDES:
        ok = ok & (s != -float("inf"))
    if MASKED or HIDES:
        s = tl.where(ok, s, m)
    w, ds, by_terms = terms_back(s, m, stats, p, more, df, dL)
    if MASKED or HIDES:
        w = tl.where(ok, w, 0.0)
        ds = tl.where(ok, ds, 0.0)
    d, by_row, by_column, by_pair = score_back(raw, ds, at, xs)
    d = tl.broadcast_to(d, raw.shape)  # zero where a mod forgets the product
    return ok, w, d, by_terms, by_row, by_column, by_pair


@triton.jit
def rows_tile(column, qt, gt, k, v, sc, r, dL, m, stats, more, xs, ms, p, k_pos, b, n, kh, t, tq,
              dq, sums, MASKED: tl.constexpr):  # fmt: skip
    j = column + tl.arange(0, BN)
    seen = j
    if MASKED:
        j = tl.minimum(j, S - 1)
    kt = read(k, b, j[:, None], kh, K_EACH, K, H, HP)
    vt = read(v, b, j[:, None], kh, V_EACH, K, D, DP)
    raw = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * sc
    df = tl.dot(gt, tl.trans(vt), input_precision=PRECISION) * r
    at = (b, n, t, j[None, :], tq, position(k_pos, b, n, j[None, :], KPOS_B, KPOS_N, S))
    ok = seen[None, :] < S
    if MASKED:
        ok = allowed(at, ms) & (seen[None, :] < tl.minimum(column // COLS * COLS + COLS, S))
    ok, w, d, by_terms, by_row, by_column, by_pair = back(raw, df, dL, m, stats, more, p, ok, at,
                                                          xs, MASKED)  # fmt: skip
    sums = add_gradients(sums, by_terms, by_row, ok)
    if WEIGHS:
        dq = tl.dot(d.to(kt.dtype), kt, dq, input_precision=PRECISION)
    return dq, sums


@triton.jit
def rows(q, k, v, g, scale, r, dL, m, stats, more, xs, ms, ps, q_pos, k_pos, bounds, entries, dq,
         by_row, ROW_TILES: tl.constexpr, BLOCKS: tl.constexpr):  # fmt: skip
    """Cotangents that ride with a tile of queries: dq over scale (if WEIGHS), sums over keys."""
    number = ROW_TILES - 1 - tl.program_id(0)
    n, b = tl.program_id(1), tl.program_id(2)
    t, inside, n = rows_of(number, n)
    kh = n * K // N
    at_rows = row_of(b, n, t)
    qt = read(q, b, t, n, Q_EACH, N, H, HP)
    gt = read(g, b, t, n, T * N * D, N, D, DP).to(qt.dtype)
    sc = tl.load(scale + b * SCALE_EACH)
    rr, ll, mm = tl.load(r + at_rows), tl.load(dL + at_rows), tl.load(m + at_rows)
    here, also = load_rows(stats, at_rows), load_more(more, at_rows)
    p = params(b, n, ps)
    tq = position(q_pos, b, n, t, QPOS_B, QPOS_N, T)
    acc = tl.full((BM, HP), 0.0, tl.float32)
    sums = no_gradients(tl.full((BM, 1), 0.0, tl.float32))
    block = number // ((ROWS + BM - 1) // BM)
    low, middle, high = list_of(bounds, b, n, block, BLOCKS)
    for i in range(low, middle):
        acc, sums = rows_tile(tl.load(entries + i), qt, gt, k, v, sc, rr, ll, mm, here, also, xs,
                              ms, p, k_pos, b, n, kh, t, tq, acc, sums, False)  # fmt: skip
    for i in range(middle, high):
        acc, sums = rows_tile(tl.load(entries + i), qt, gt, k, v, sc, rr, ll, mm, here, also, xs,
                              ms, p, k_pos, b, n, kh, t, tq, acc, sums, True)  # fmt: skip
    store_gradients(by_row, sums, at_rows, inside)
    if WEIGHS:
        write(dq, acc, b, t, inside, n, T, N, H, HP)


@triton.jit
def columns_tile(row, q, g, kt, vt, sc, r, dL, m, stats, more, xs, ms, ps, q_pos, b, n, j, tk,
                 j_ok, dk, dv, sums, MASKED: tl.constexpr):  # fmt: skip
    t = row + tl.arange(0, BM)
    seen = t
    if MASKED:
        t = tl.minimum(t, T - 1)
    at_rows = row_of(b, n, t[None, :])
    qt = read(q, b, t[:, None], n, Q_EACH, N, H, HP)
    gt = read(g, b, t[:, None], n, T * N * D, N, D, DP)
    rr, ll, mm = tl.load(r + at_rows), tl.load(dL + at_rows), tl.load(m + at_rows)
    here, also = load_rows(stats, at_rows), load_more(more, at_rows)
    p = params(b, n, ps)
    raw = tl.dot(kt, tl.trans(qt), input_precision=PRECISION) * sc
    df = tl.dot(vt, tl.trans(gt.to(vt.dtype)), input_precision=PRECISION) * rr
    at = (b, n, t[None, :], j, position(q_pos, b, n, t[None, :], QPOS_B, QPOS_N, T), tk)
    ok = seen[None, :] < T
    if MASKED:
        end = tl.minimum(row // ROWS * ROWS + ROWS, T)
        ok = allowed(at, ms) & (seen[None, :] < end) & j_ok
    ok, w, d, by_terms, by_row, by_column, by_pair = back(raw, df, ll, mm, here, also, p, ok, at,
                                                          xs, MASKED)  # fmt: skip
    sums = add_gradients(sums, (), by_column, ok)
    dv = tl.dot((w * rr).to(kt.dtype), gt.to(kt.dtype), dv, input_precision=PRECISION)
    dk = tl.dot(d.to(kt.dtype), qt, dk, input_precision=PRECISION)
    return dk, dv, sums


@triton.jit
def columns(q, k, v, g, scale, r, dL, m, stats, more, xs, ms, ps, q_pos, k_pos, bounds, entries,
            dk, dv, by_column, BLOCKS: tl.constexpr):  # fmt: skip
    """Cotangents that ride with a tile of keys: dk, dv, and sums over queries of each head."""
    number, kh, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, end = tile_start(number, COLS, BN)
    j = first + tl.arange(0, BN)[:, None]
    inside = j < tl.minimum(end, S)
    j = tl.minimum(j, S - 1)
    kt = read(k, b, j, kh, K_EACH, K, H, HP)
    vt = read(v, b, j, kh, V_EACH, K, D, DP)
    sc = tl.load(scale + b * SCALE_EACH)
    dk_acc = tl.full((BN, HP), 0.0, tl.float32)
    dv_acc = tl.full((BN, DP), 0.0, tl.float32)
    block = number // ((COLS + BN - 1) // BN)
    for group in range(N // K):
        n = kh * (N // K) + group
        tk = position(k_pos, b, n, j, KPOS_B, KPOS_N, S)
        sums = no_gradients(tl.full((BN, 1), 0.0, tl.float32))
        low, middle, high = list_of(bounds, b, n, block, BLOCKS)
        for i in range(low, middle):
            dk_acc, dv_acc, sums = columns_tile(
                tl.load(entries + i), q, g, kt, vt, sc, r, dL, m, stats, more, xs, ms, ps, q_pos,
                b, n, j, tk, inside, dk_acc, dv_acc, sums, False)  # fmt: skip
        for i in range(middle, high):
            dk_acc, dv_acc, sums = columns_tile(
                tl.load(entries + i), q, g, kt, vt, sc, r, dL, m, stats, more, xs, ms, ps, q_pos,
                b, n, j, tk, inside, dk_acc, dv_acc, sums, True)  # fmt: skip
        store_gradients(by_column, sums, (b.to(tl.int64) * N + n) * S + j, inside)
    write(dk, dk_acc * sc, b, j, inside, kh, S, K, H, HP)
    write(dv, dv_acc, b, j, inside, kh, S, K, D, DP)
