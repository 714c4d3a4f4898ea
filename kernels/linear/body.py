# type: ignore  pyright takes Triton's functions for Python's
"""The kernels of chunked linear attention; `kernels.linear.triton` says what each computes.

Tokens are cut into NC chunks of C.  Arrays are (B,T,heads,width) of tokens, or one matrix a head
and chunk: states (B,N,NC,H,D) and scores (B,N,NC,C,C), which `read` takes as (B*N*NC,rows,1,width).
G is 0 without decay, 1 for a decay of tokens, H for one of channels; sums of log decays, `whole`
and `rest`, are (B,NC*C,N,G).  BH and BD are the widths of tiles of keys and of values, BG that of
a tile of decays.  Programs are numbered in one dimension, whose length has no limit.
"""

import triton
from triton import language as tl


@triton.jit
def dot(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def read(x, b, t, n, T: tl.constexpr, N: tl.constexpr, W: tl.constexpr, R: tl.constexpr, w, BW: tl.constexpr):  # fmt: skip # noqa: E501
    """The tile (R,BW) of x (B,T,N,W) from token t and column w on, zeros outside."""
    i, j = tl.arange(0, R), w + tl.arange(0, BW)
    inside = (t + i < T)[:, None] & (j < W)[None, :]
    at = x + ((b * T + t) * N + n) * W
    return tl.load(at + i[:, None] * (N * W) + j[None, :], mask=inside, other=0.0)


@triton.jit
def given(x, b, t, n, T: tl.constexpr, N: tl.constexpr, W: tl.constexpr, R: tl.constexpr, w, BW: tl.constexpr):  # fmt: skip # noqa: E501
    """`read`, with zeros for NaN and infinities: in a product 0 * NaN would spoil other tokens."""
    tile = read(x, b, t, n, T, N, W, R, w, BW)
    wide = tile.to(tl.float32)
    return tl.where(wide - wide == 0.0, tile, 0.0).to(tile.dtype)


@triton.jit
def put(x, tile, b, t, n, T: tl.constexpr, N: tl.constexpr, W: tl.constexpr, R: tl.constexpr, w, BW: tl.constexpr):  # fmt: skip # noqa: E501
    """Writes where `read` reads."""
    i, j = tl.arange(0, R), w + tl.arange(0, BW)
    inside = (t + i < T)[:, None] & (j < W)[None, :]
    at = x + ((b * T + t) * N + n) * W
    tl.store(at + i[:, None] * (N * W) + j[None, :], tile.to(x.dtype.element_ty), mask=inside)


@triton.jit
def fade(late, early):
    """exp of the sum of log decays between two tokens; sums are (whole, rest)."""
    return tl.exp((late[0] - early[0]) + (late[1] - early[1]))


@triton.jit
def fade_where(seen, late, early):
    return tl.exp(tl.where(seen, (late[0] - early[0]) + (late[1] - early[1]), float("-inf")))


@triton.jit
def turned(c):
    return tl.trans(c[0]), tl.trans(c[1])


@triton.jit
def sums(whole, rest, b, t, n, TP: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr, h, BG: tl.constexpr):  # fmt: skip # noqa: E501
    """(whole, rest) of R tokens: (R,1), or (R,BG) of the channels from h on."""
    w = h if G > 1 else 0
    return (
        read(whole, b, t, n, TP, N, G, R, w, BG),
        read(rest, b, t, n, TP, N, G, R, w, BG),
    )


# ---------------------------------------------------------------------------- scores of a chunk


@triton.jit
def decayed(s, whole, rest, b, t, n, TP: tl.constexpr, N: tl.constexpr, G: tl.constexpr, C: tl.constexpr, FIRST: tl.constexpr):  # fmt: skip # noqa: E501
    """s_ij exp(c_i - c_j) where i >= j + FIRST, else 0, for decays of tokens or none."""
    i = tl.arange(0, C)
    seen = i[:, None] >= i[None, :] + FIRST
    if G:
        c = sums(whole, rest, b, t, n, TP, N, G, C, 0, 1)
        return s * fade_where(seen, c, turned(c))
    else:
        return tl.where(seen, s, 0.0)


@triton.jit
def scores(
    q, k, whole, rest, p,
    T: tl.constexpr, N: tl.constexpr, NQ: tl.constexpr, NK: tl.constexpr, H: tl.constexpr,
    G: tl.constexpr, NC: tl.constexpr, C: tl.constexpr, BH: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    chunk, bn = pid % NC, (pid // NC).to(tl.int64)
    b, n, t = bn // N, bn % N, chunk * C
    s = tl.full((C, C), 0.0, tl.float32)
    for h in range(0, H, BH):
        x = given(q, b, t, n // (N // NQ), T, NQ, H, C, h, BH)
        y = given(k, b, t, n // (N // NK), T, NK, H, C, h, BH)
        s += dot(x, tl.trans(y))
    s = decayed(s, whole, rest, b, t, n, NC * C, N, G, C, FIRST)
    put(p, s, bn * NC + chunk, 0, 0, C, 1, C, C, 0, C)


@triton.jit
def scores_back(
    q, k, whole, rest, dp, dq, dk, dc,
    T: tl.constexpr, N: tl.constexpr, NQ: tl.constexpr, NK: tl.constexpr, H: tl.constexpr,
    G: tl.constexpr, NC: tl.constexpr, C: tl.constexpr, BH: tl.constexpr, NH: tl.constexpr,
    FIRST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    tile, chunk, bn = pid % NH, pid // NH % NC, (pid // (NH * NC)).to(tl.int64)
    b, n, t, h = bn // N, bn % N, chunk * C, tile * BH
    x = given(q, b, t, n // (N // NQ), T, NQ, H, C, h, BH)
    y = given(k, b, t, n // (N // NK), T, NK, H, C, h, BH)
    ds = read(dp, bn * NC + chunk, 0, 0, C, 1, C, C, 0, C).to(tl.float32)
    ds = decayed(ds, whole, rest, b, t, n, NC * C, N, G, C, FIRST).to(x.dtype)
    dx, dy = dot(ds, y), dot(tl.trans(ds), x)
    put(dq, dx, b, t, n, T, N, H, C, h, BH)
    put(dk, dy, b, t, n, T, N, H, C, h, BH)
    if G:
        moved = tl.sum(x.to(tl.float32) * dx - y.to(tl.float32) * dy, 1)[:, None]
        put(dc, moved, b, t, n, NC * C, N, NH, C, tile, 1)


@triton.jit
def inverse(lower, out, C: tl.constexpr):
    """Row after row: x_r = e_r - sum_j L_rj x_j, as stable as a substitution is."""
    bnc = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, C)
    x = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for r in range(1, C):
        row = tl.trans(read(lower, bnc, r, 0, C, 1, C, 1, 0, C))
        x -= tl.where((i == r)[:, None], tl.sum(row * x, 0)[None, :], 0.0)
    put(out, x, bnc, 0, 0, C, 1, C, C, 0, C)


# Decays of channels do not factor out of q.k, but over a point between key and query they do, and
# both factors are exponentials of numbers <= 0.  Chunks are cut into blocks of R tokens: pairs of
# different blocks meet where the later block starts (for dk where the earlier one ends), as one
# product; pairs within a block are taken one by one.


@triton.jit
def channel_scores(
    q, k, whole, rest, p,
    T: tl.constexpr, N: tl.constexpr, NQ: tl.constexpr, NK: tl.constexpr, H: tl.constexpr,
    G: tl.constexpr, NC: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BH: tl.constexpr,
    FIRST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    blocks: tl.constexpr = C // R
    block, chunk, bn = pid % blocks, pid // blocks % NC, (pid // (blocks * NC)).to(tl.int64)
    b, n, t, TP = bn // N, bn % N, chunk * C, NC * C
    at = t + block * R
    i, j = tl.arange(0, R), tl.arange(0, C)
    s = tl.full((R, C), 0.0, tl.float32)
    for h in range(0, H, BH):
        x = given(q, b, at, n // (N // NQ), T, NQ, H, R, h, BH)
        y = given(k, b, t, n // (N // NK), T, NK, H, C, h, BH)
        cx = sums(whole, rest, b, at, n, TP, N, G, R, h, BH)
        cy = sums(whole, rest, b, t, n, TP, N, G, C, h, BH)
        met = sums(whole, rest, b, tl.maximum(at - 1, t), n, TP, N, G, 1, h, BH)
        sooner = (y * fade_where((j < block * R)[:, None], met, cy)).to(x.dtype)
        s += dot((x * fade(cx, met)).to(x.dtype), tl.trans(sooner))
        for m in range(R):
            ym = given(k, b, at + m, n // (N // NK), T, NK, H, 1, h, BH).to(tl.float32)
            cm = sums(whole, rest, b, at + m, n, TP, N, G, 1, h, BH)
            own = tl.sum(x * ym * fade_where((i >= m + FIRST)[:, None], cx, cm), 1)
            s += tl.where((j == block * R + m)[None, :], own[:, None], 0.0)
    put(p, s, bn * NC + chunk, block * R, 0, C, 1, C, R, 0, C)


@triton.jit
def channel_scores_back(
    q, k, whole, rest, dp, dq0, dk0, dend, dq, dk, dc,
    T: tl.constexpr, N: tl.constexpr, NQ: tl.constexpr, NK: tl.constexpr, H: tl.constexpr,
    G: tl.constexpr, NC: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BH: tl.constexpr,
    NH: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    blocks: tl.constexpr = C // R
    TP: tl.constexpr = NC * C
    block, tile = pid % blocks, pid // blocks % NH
    chunk, bn = pid // (blocks * NH) % NC, (pid // (blocks * NH * NC)).to(tl.int64)
    b, n, t, h = bn // N, bn % N, chunk * C, tile * BH
    nq, nk, bnc = n // (N // NQ), n // (N // NK), bn * NC + chunk
    at, row = t + block * R, block * R
    i, j = tl.arange(0, R), tl.arange(0, C)
    x = given(q, b, at, nq, T, NQ, H, R, h, BH)
    y = given(k, b, at, nk, T, NK, H, R, h, BH)
    c = sums(whole, rest, b, at, n, TP, N, G, R, h, BH)
    all_c = sums(whole, rest, b, t, n, TP, N, G, C, h, BH)
    # the block's queries with the keys of earlier blocks
    met = sums(whole, rest, b, tl.maximum(at - 1, t), n, TP, N, G, 1, h, BH)
    sooner = given(k, b, t, nk, T, NK, H, C, h, BH)
    sooner = (sooner * fade_where((j < row)[:, None], met, all_c)).to(x.dtype)
    d = read(dp, bnc, row, 0, C, 1, C, R, 0, C).to(x.dtype)
    dx = dot(d, sooner) * fade(c, met)
    # its keys with the queries of later blocks
    met = sums(whole, rest, b, at + R - 1, n, TP, N, G, 1, h, BH)
    later = given(q, b, t, nq, T, NQ, H, C, h, BH)
    later = (later * fade_where((j >= row + R)[:, None], all_c, met)).to(x.dtype)
    d = read(dp, bnc, 0, 0, C, 1, C, C, row, R).to(x.dtype)
    dy = dot(tl.trans(d), later) * fade(met, c)
    for m in range(R):
        cm = sums(whole, rest, b, at + m, n, TP, N, G, 1, h, BH)
        ym = given(k, b, at + m, nk, T, NK, H, 1, h, BH).to(tl.float32)
        dm = read(dp, bnc, row, 0, C, 1, C, R, row + m, 1).to(tl.float32)
        dx += dm * ym * fade_where((i >= m + FIRST)[:, None], c, cm)
        xm = given(q, b, at + m, nq, T, NQ, H, 1, h, BH).to(tl.float32)
        dm = tl.trans(read(dp, bnc, row + m, 0, C, 1, C, 1, row, R).to(tl.float32))
        dy += dm * xm * fade_where((i + FIRST <= m)[:, None], cm, c)
    if dq0 is not None:
        dx += read(dq0, b, at, n, T, N, H, R, h, BH)
        dy += read(dk0, b, at, n, T, N, H, R, h, BH)
    put(dq, dx, b, at, n, T, N, H, R, h, BH)
    put(dk, dy, b, at, n, T, N, H, R, h, BH)
    moved = x * dx - y * dy
    if dend is not None:
        end = read(dend, bnc, 0, 0, 1, 1, H, 1, h, BH)
        moved += tl.where((row + i == C - 1)[:, None], end, 0.0)
    put(dc, moved, b, at, n, TP, N, G, R, h, BH)


# -------------------------------------------------------------------------- from chunk to chunk


@triton.jit
def states(
    k, u, w, whole, rest, start, before, last, new,
    T: tl.constexpr, N: tl.constexpr, NK: tl.constexpr, NU: tl.constexpr, H: tl.constexpr,
    D: tl.constexpr, G: tl.constexpr, NC: tl.constexpr, C: tl.constexpr, BH: tl.constexpr,
    NH: tl.constexpr, BD: tl.constexpr, ND: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    d, h, bn = pid % ND * BD, pid // ND % NH * BH, (pid // (ND * NH)).to(tl.int64)
    b, n = bn // N, bn % N
    state = read(start, bn, h, 0, H, 1, D, BH, d, BD)
    for chunk in range(NC):
        t = chunk * C
        put(before, state, bn * NC + chunk, h, 0, H, 1, D, BH, d, BD)
        x = given(k, b, t, n // (N // NK), T, NK, H, C, h, BH)
        if w is None:
            y = given(u, b, t, n // (N // NU), T, NU, D, C, d, BD)
        else:
            y = read(u, b, t, n, T, N, D, C, d, BD)
            erased = dot(read(w, b, t, n, T, N, H, C, h, BH), state.to(x.dtype))
            y = (y - erased).to(x.dtype)
            put(new, y, b, t, n, T, N, D, C, d, BD)
        if G:
            c = sums(whole, rest, b, t, n, NC * C, N, G, C, h, BG)
            end = sums(whole, rest, b, t + C - 1, n, NC * C, N, G, 1, h, BG)
            if G > 1:
                x = (x * fade(end, c)).to(x.dtype)
            else:
                y = (y * fade(end, c)).to(x.dtype)
            state *= tl.trans(tl.exp(end[0] + end[1]))
        state += dot(tl.trans(x), y)
    put(last, state, bn, h, 0, H, 1, D, BH, d, BD)


@triton.jit
def states_back(
    q, k, w, p, do, whole, rest, dlast, after, dstart, du,
    T: tl.constexpr, N: tl.constexpr, NQ: tl.constexpr, NK: tl.constexpr, H: tl.constexpr,
    D: tl.constexpr, G: tl.constexpr, NC: tl.constexpr, C: tl.constexpr, BH: tl.constexpr,
    NH: tl.constexpr, BD: tl.constexpr, ND: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    d, h, bn = pid % ND * BD, pid // ND % NH * BH, (pid // (ND * NH)).to(tl.int64)
    b, n = bn // N, bn % N
    state = read(dlast, bn, h, 0, H, 1, D, BH, d, BD)
    for back in range(NC):
        chunk = NC - 1 - back
        t = chunk * C
        put(after, state, bn * NC + chunk, h, 0, H, 1, D, BH, d, BD)
        x = given(q, b, t, n // (N // NQ), T, NQ, H, C, h, BH)
        dy = read(do, b, t, n, T, N, D, C, d, BD)
        du_here = dy
        if G:
            c = sums(whole, rest, b, t, n, NC * C, N, G, C, h, BG)
            end = sums(whole, rest, b, t + C - 1, n, NC * C, N, G, 1, h, BG)
        if w is not None:
            key = given(k, b, t, n // (N // NK), T, NK, H, C, h, BH)
            if G > 1:
                key = (key * fade(end, c)).to(x.dtype)
            wrote = dot(key, state.to(x.dtype))
            if G == 1:
                wrote *= fade(end, c)
            scored = read(p, bn * NC + chunk, 0, 0, C, 1, C, C, 0, C)
            du_here = (wrote + dot(tl.trans(scored), dy)).to(x.dtype)
            put(du, du_here, b, t, n, T, N, D, C, d, BD)
        if G:
            if G > 1:
                x = (x * tl.exp(c[0] + c[1])).to(x.dtype)
            else:
                dy = (dy * tl.exp(c[0] + c[1])).to(x.dtype)
            state *= tl.trans(tl.exp(end[0] + end[1]))
        state += dot(tl.trans(x), dy)
        if w is not None:
            state -= dot(tl.trans(read(w, b, t, n, T, N, H, C, h, BH)), du_here)
    put(dstart, state, bn, h, 0, H, 1, D, BH, d, BD)


# ------------------------------------------------------------------------ chunks independently


@triton.jit
def outputs(
    q, k, p, u, bad, whole, rest, before, out,
    T: tl.constexpr, N: tl.constexpr, NQ: tl.constexpr, NK: tl.constexpr, NU: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, G: tl.constexpr, NC: tl.constexpr, C: tl.constexpr,
    BH: tl.constexpr, BD: tl.constexpr, ND: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    d, chunk, bn = pid % ND * BD, pid // ND % NC, (pid // (ND * NC)).to(tl.int64)
    b, n, t, bnc = bn // N, bn % N, chunk * C, bn * NC + chunk
    o = tl.full((C, BD), 0.0, tl.float32)
    s = tl.full((C, C), 0.0, tl.float32)
    for h in range(0, H, BH):
        x = given(q, b, t, n // (N // NQ), T, NQ, H, C, h, BH)
        if p is None:
            s += dot(x, tl.trans(given(k, b, t, n // (N // NK), T, NK, H, C, h, BH)))
        if G > 1:
            c = sums(whole, rest, b, t, n, NC * C, N, G, C, h, BG)
            x = (x * tl.exp(c[0] + c[1])).to(x.dtype)
        o += dot(x, read(before, bnc, h, 0, H, 1, D, BH, d, BD))
    if G == 1:
        c = sums(whole, rest, b, t, n, NC * C, N, G, C, 0, 1)
        o *= tl.exp(c[0] + c[1])
    y = given(u, b, t, n // (N // NU), T, NU, D, C, d, BD)
    if p is None:
        scored = decayed(s, whole, rest, b, t, n, NC * C, N, G, C, 0).to(y.dtype)
    else:
        scored = read(p, bnc, 0, 0, C, 1, C, C, 0, C)
    o += dot(scored, y) + read(bad, b, t, n, T, N, 1, C, 0, 1)
    put(out, o, b, t, n, T, N, D, C, d, BD)


@triton.jit
def values_back(
    q, k, p, do, whole, rest, after, du,
    T: tl.constexpr, N: tl.constexpr, NQ: tl.constexpr, NK: tl.constexpr, H: tl.constexpr,
    D: tl.constexpr, G: tl.constexpr, NC: tl.constexpr, C: tl.constexpr, BH: tl.constexpr,
    BD: tl.constexpr, ND: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    d, chunk, bn = pid % ND * BD, pid // ND % NC, (pid // (ND * NC)).to(tl.int64)
    b, n, t, bnc = bn // N, bn % N, chunk * C, bn * NC + chunk
    dv = tl.full((C, BD), 0.0, tl.float32)
    s = tl.full((C, C), 0.0, tl.float32)
    for h in range(0, H, BH):
        y = given(k, b, t, n // (N // NK), T, NK, H, C, h, BH)
        if p is None:
            s += dot(given(q, b, t, n // (N // NQ), T, NQ, H, C, h, BH), tl.trans(y))
        if G > 1:
            c = sums(whole, rest, b, t, n, NC * C, N, G, C, h, BG)
            end = sums(whole, rest, b, t + C - 1, n, NC * C, N, G, 1, h, BG)
            y = (y * fade(end, c)).to(y.dtype)
        dv += dot(y, read(after, bnc, h, 0, H, 1, D, BH, d, BD))
    if G == 1:
        c = sums(whole, rest, b, t, n, NC * C, N, G, C, 0, 1)
        dv *= fade(sums(whole, rest, b, t + C - 1, n, NC * C, N, G, 1, 0, 1), c)
    dz = read(do, b, t, n, T, N, D, C, d, BD)
    if p is None:
        scored = decayed(s, whole, rest, b, t, n, NC * C, N, G, C, 0).to(dz.dtype)
    else:
        scored = read(p, bnc, 0, 0, C, 1, C, C, 0, C)
    dv += dot(tl.trans(scored), dz)
    put(du, dv, b, t, n, T, N, D, C, d, BD)


# With decays of channels, `channel_scores_back` adds what flows through the scores.


@triton.jit
def chunk_back(
    q, k, u, du, do, whole, rest, before, after, dq, dk, dp, dw, dend, dc,
    T: tl.constexpr, N: tl.constexpr, NQ: tl.constexpr, NK: tl.constexpr, NU: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, G: tl.constexpr, NC: tl.constexpr, C: tl.constexpr,
    BH: tl.constexpr, NH: tl.constexpr, BD: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    tile, chunk, bn = pid % NH, pid // NH % NC, (pid // (NH * NC)).to(tl.int64)
    b, n, t, h, bnc = bn // N, bn % N, chunk * C, tile * BH, bn * NC + chunk
    dx = tl.full((C, BH), 0.0, tl.float32)
    dy = tl.full((C, BH), 0.0, tl.float32)
    erased = tl.full((C, BH), 0.0, tl.float32)
    ds = tl.full((C, C), 0.0, tl.float32)
    kept = tl.full((BH,), 0.0, tl.float32)
    for d in range(0, D, BD):
        dz = read(do, b, t, n, T, N, D, C, d, BD)
        z = given(u, b, t, n // (N // NU), T, NU, D, C, d, BD)
        state = read(before, bnc, h, 0, H, 1, D, BH, d, BD)
        dstate = read(after, bnc, h, 0, H, 1, D, BH, d, BD)
        if G:
            kept += tl.sum(state.to(tl.float32) * dstate.to(tl.float32), 1)
        dx += dot(dz, tl.trans(state))
        dy += dot(z, tl.trans(dstate))
        ds += dot(dz, tl.trans(z))
        if dw is not None:
            erased -= dot(read(du, b, t, n, T, N, D, C, d, BD), tl.trans(state))
    if dw is not None:
        put(dw, erased, b, t, n, T, N, H, C, h, BH)
    y = given(k, b, t, n // (N // NK), T, NK, H, C, h, BH)
    if G:
        c = sums(whole, rest, b, t, n, NC * C, N, G, C, h, BG)
        end = sums(whole, rest, b, t + C - 1, n, NC * C, N, G, 1, h, BG)
        dx *= tl.exp(c[0] + c[1])
        dy *= fade(end, c)
        ends = kept[None, :] * tl.exp(end[0] + end[1]) + tl.sum(y * dy, 0)[None, :]
    if G > 1:
        put(dend, ends, bnc, 0, 0, 1, 1, H, 1, h, BH)
        if tile == 0:
            put(dp, ds, bnc, 0, 0, C, 1, C, C, 0, C)
    else:
        x = given(q, b, t, n // (N // NQ), T, NQ, H, C, h, BH)
        ds = decayed(ds, whole, rest, b, t, n, NC * C, N, G, C, 0).to(x.dtype)
        dx += dot(ds, y)
        dy += dot(tl.trans(ds), x)
        if G:
            moved = tl.sum(x * dx - y * dy, 1)[:, None]
            moved += tl.where((tl.arange(0, C) == C - 1)[:, None], tl.sum(ends, 1)[:, None], 0.0)
            put(dc, moved, b, t, n, NC * C, N, NH, C, tile, 1)
    put(dq, dx, b, t, n, T, N, H, C, h, BH)
    put(dk, dy, b, t, n, T, N, H, C, h, BH)
