"""Launches of the flash kernels, forward and backward, on arrays.

    state = forward(plan, x)                       values, reference, sums of terms
    grads = backward(plan, x, ...)                 cotangents of everything in x that has one

`Plan` is what is known when JAX traces, `Arrays` what is not.  All arrays lead with the examples, B
or 1, so that `jax.vmap` makes more examples of what it maps over (`over_examples`).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.kernels.flash import pieces
from attnjax.kernels.flash.pieces import Function
from attnjax.kernels.launch import launch
from attnjax.kernels.partition import NO_HEADS, over_devices

Array = Any
Rows = tuple[Array, ...]


class Lists(NamedTuple):
    """Which tiles of the other side each block visits: tokens at which they start.

    entries (B|1, all), bounds (B|1, heads, blocks, 3): for each block, places in its example's
    entries where FULL tiles start and end, and where PARTIAL ones, which follow, end.
    """

    bounds: Array
    entries: Array


class Arrays(NamedTuple):
    """Arguments of one attention: q (B,T,N,H), k (B|1,S,K,H), v (B|1,S,K,D), scale (B|1,).

    operands of mods and of the mask as `pieces.Operand` says, params (B|1,N|1,1,1), all float32
    but the mask's; positions (B|1,X|1,T) and (B|1,X|1,S) int32, or None: 0, 1, 2 ...
    """

    q: Array
    k: Array
    v: Array
    scale: Array
    operands: Rows
    mask_operands: Rows
    params: Rows
    q_positions: Array | None
    k_positions: Array | None
    of_rows: Lists  # keys for each block of queries
    of_columns: Lists  # queries for each block of keys


_LISTS: Any = Lists(1, NO_HEADS)
_HEADS: Any = Arrays(2, 2, 2, NO_HEADS, 1, 1, 1, 1, 1, _LISTS, _LISTS)  # type: ignore[arg-type]  # axes


@dataclass(frozen=True)
class Tiling:
    """Sizes of a kernel's tiles, its warps, and the stages of its pipeline."""

    block_q: int
    block_k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Plan:
    """What a program is made for.

    normalizer   an object with numerator, denominator, peak, rescale, floor and stages, functions
                 of scalars (s, m, stats, params), as attnjax.core.normalizers describes
    finish       (values, sums, m, params) -> results; None leaves sums as they are, in float32
    tiling, rows, columns   of the forward kernel, and of the backward ones
    split        programs over which the tiles of all heads are dealt, where queries are few
    blocks       (queries, keys) of the blocks that lists speak of; None: one tile each
    """

    mods: tuple[Function, ...]
    mask: Function | None
    normalizer: Any
    finish: Callable[..., Any] | None
    blocks: tuple[int, int] | None
    tiling: Tiling
    rows: Tiling
    columns: Tiling
    precision: str
    interpret: bool
    split: int = 0


def padded(width: int) -> int:
    """The power of two that a head's width takes in a tile."""
    return max(16, 1 << (width - 1).bit_length())


# ----------------------------------------------------------------------- mapped over examples


def over_examples(heads: Any, out_heads: Any) -> Callable[..., Any]:
    """fn(plan, *trees of arrays (B|1,...)) -> a tree of arrays (B,...), under vmap more examples.

    A mapped axis of V becomes V * B examples: neither jax-triton's call nor a callback has a rule.
    Under jit each device runs its own examples and heads, whose axes are those of `over_devices`.
    """
    return functools.partial(_over_examples, heads=heads, out_heads=out_heads)


def _over_examples(fn: Callable[..., Any], heads: Any, out_heads: Any) -> Callable[..., Any]:
    @functools.wraps(fn)
    def called(plan: Any, *trees: Any) -> Any:
        one = (plan if isinstance(plan, Plan) else plan[0]).interpret
        run = over_devices(functools.partial(fn, plan), heads, out_heads, one=one)
        call = jax.custom_batching.custom_vmap(run)

        @call.def_vmap
        def rule(V: int, mapped: Any, *given: Any) -> Any:
            arrays, tree = jax.tree.flatten(given)
            flags = jax.tree.leaves(mapped)
            B = max(x.shape[1 if f else 0] for x, f in zip(arrays, flags, strict=True))

            def more(x: Array, is_mapped: bool) -> Array:
                b = x.shape[1 if is_mapped else 0]
                if not is_mapped:
                    if b == 1:
                        return x
                    x = jnp.broadcast_to(x, (V, *x.shape))
                elif b != B:
                    x = jnp.broadcast_to(x, (V, B, *x.shape[2:]))
                return x.reshape(-1, *x.shape[2:])

            flat = [more(x, f) for x, f in zip(arrays, flags, strict=True)]
            out = called(plan, *jax.tree.unflatten(tree, flat))
            apart = lambda x: x.reshape(V, -1, *x.shape[1:])
            return jax.tree.map(apart, out), jax.tree.map(lambda _: True, out)

        return call(*trees)

    return called


# ------------------------------------------------------------------------------ what is shared


def _letters(plan: Plan, x: Arrays, tile: Tiling, lists: Lists | None, **more: Any) -> str:
    """The letters of the body for this call."""
    (B, T, N, H), (S, K, D) = x.q.shape, x.v.shape[1:]
    each = lambda a: 0 if a.shape[0] == 1 else int(np.prod(a.shape[1:]))
    at = lambda a: (1, 1) if a is None else a.shape[:2]
    (QPOS_B, QPOS_N), (KPOS_B, KPOS_N) = at(x.q_positions), at(x.k_positions)
    blocks = _blocks(plan, tile)
    listed = (1, 1, 0)
    if lists is not None:
        listed = (*lists.bounds.shape[:2], lists.entries.shape[1])
    values = {
        "B": B, "T": T, "S": S, "N": N, "K": K, "H": H, "D": D, "HP": padded(H), "DP": padded(D),
        "BM": tile.block_q, "BN": tile.block_k, "ROWS": blocks[0], "COLS": blocks[1],
        "Q_EACH": each(x.q), "K_EACH": each(x.k), "V_EACH": each(x.v), "SCALE_EACH": each(x.scale),
        "LISTS_B": listed[0], "LISTS_N": listed[1], "ENTRIES": listed[2],
        "QPOS_B": QPOS_B, "QPOS_N": QPOS_N, "KPOS_B": KPOS_B, "KPOS_N": KPOS_N,
        "PRECISION": plan.precision, "HIDES": bool(plan.mods) and not plan.normalizer.vanishes,
    }  # fmt: skip
    return pieces.letters(**{**values, **more})


def _common(plan: Plan, x: Arrays) -> dict[str, Any]:
    """Arguments that all kernels take."""
    return {
        "q": x.q, "k": x.k, "v": x.v, "scale": x.scale, "xs": x.operands, "ms": x.mask_operands,
        "ps": x.params, "q_pos": x.q_positions, "k_pos": x.k_positions,
    }  # fmt: skip


def _shaped(functions: Sequence[Function], arrays: Rows) -> tuple[Function, ...]:
    """The functions with operands of the shapes that arrays have now: vmap makes more examples."""
    rest = iter(arrays)
    fit = lambda f: tuple(replace(o, shape=next(rest).shape) for o in f.operands)
    return tuple(replace(f, operands=fit(f)) for f in functions)


def _holes(plan: Plan, x: Arrays) -> str:
    """Holes that all kernels have: scores, mask, parameters."""
    mask = None if plan.mask is None else _shaped([plan.mask], x.mask_operands)[0]
    text = pieces.score(_shaped(plan.mods, x.operands)) + pieces.allowed(mask)
    return text + pieces.params([p.shape for p in x.params])


def _rows_like(x: Arrays) -> jax.ShapeDtypeStruct:
    B, T, N, _ = x.q.shape
    return jax.ShapeDtypeStruct((B, N, T), jnp.float32)


def _blocks(plan: Plan, tile: Tiling) -> tuple[int, int]:
    return plan.blocks or (tile.block_q, tile.block_k)


def _tiles(length: int, block: int, tile: int) -> int:
    """How many tiles there are: each block starts a new one."""
    return -(-length // block) * -(-block // tile)


def _source(name: str) -> str:
    return (Path(__file__).parent / name).read_text()


def _launch(plan: Plan, tiling: Tiling, function: str, text: str, arguments: Any, out: Any, grid):
    return launch(
        "flash/body.py", function, text, arguments, out,
        grid=grid, warps=tiling.warps, stages=tiling.stages, interpret=plan.interpret,
    )  # fmt: skip


# ------------------------------------------------------------------------------------- forward


def weigh_terms(n: Any) -> Callable[..., tuple[Any, ...]]:
    """The terms of the pass that weighs values: numerator and, if there is one, denominator."""

    def terms(s: Any, m: Any, stats: Rows, params: Rows) -> tuple[Any, ...]:
        fns = (n.numerator,) if n.denominator is None else (n.numerator, n.denominator)
        return tuple(fn(s, m, stats, params) for fn in fns)

    return terms


@over_examples((_HEADS, 1), {"out": 2, "m_out": 1, "sums_out": 1})
def forward(plan: Plan, x: Arrays, stats: Rows) -> dict[str, Any]:
    """values (B,T,N,D), in q's dtype if finished, else float32; m and each of sums (B,N,T)."""
    n, (B, T, N, _) = plan.normalizer, x.q.shape
    kind = jnp.float32 if plan.finish is None else x.q.dtype
    values = jax.ShapeDtypeStruct((B, T, N, x.v.shape[3]), kind)
    return _pass(plan, x, stats, weigh_terms(n), n.peak, n.rescale, values)


def stage_sums(plan: Plan, number: int, x: Arrays, stats: Rows) -> dict[str, Any]:
    """m and sums (B,N,T) of the terms of stage `number` of the normalizer."""
    return _stage_sums((plan, number), x, stats)


@over_examples((_HEADS, 1), 1)
def _stage_sums(key: tuple[Plan, int], x: Arrays, stats: Rows) -> dict[str, Any]:
    plan, number = key
    stage = plan.normalizer.stages[number]
    return _pass(plan, x, stats, stage.terms, stage.peak, stage.rescale, None)


def _pass(plan, x, stats, terms, peak, rescale, values) -> dict[str, Any]:
    tile, (B, T, N, _) = plan.tiling, x.q.shape
    weighs = values is not None
    count = len(x.params)
    sums = len(jax.eval_shape(terms, *pieces.scalars(
        "float32", "float32", ("float32",) * len(stats), ("float32",) * count
    ))) - weighs  # fmt: skip
    holes = _holes(plan, x)
    holes += pieces.reference(plan.normalizer, peak, rescale, count, weighs)
    holes += pieces.terms(terms, len(stats), count, weighs)
    holes += pieces.finish(plan.finish if weighs else None, sums, count)
    holes += pieces.rows("load_rows", len(stats)) + pieces.rows("load_sums", sums)
    row = _rows_like(x)
    out: dict[str, Any] = {"m_out": row, "sums_out": (row,) * sums}
    out = {"out": values, **out} if weighs else out
    more = {"PEAKED": peak is not None, "WEIGHS": weighs}
    if weighs and plan.split:
        return _split_pass(plan, x, holes, more, out)
    text = _letters(plan, x, tile, x.of_rows, **more) + holes
    tiles = _tiles(T, _blocks(plan, tile)[0], tile.block_q)
    arguments = {
        **_common(plan, x), "stats": stats, "bounds": x.of_rows.bounds,
        "entries": x.of_rows.entries, "ROW_TILES": tiles, "BLOCKS": x.of_rows.bounds.shape[2],
    }  # fmt: skip
    arguments = arguments if weighs else {**arguments, "out": None}
    return _launch(plan, tile, "forward", text, arguments, out, (tiles, N, B))


class Dealt(NamedTuple):
    """A line of tiles, head behind head, dealt to programs; see `split` in the body."""

    ends: Array  # (heads + 1,)
    starts: Array  # (programs + 1,)
    heads: Array  # (programs,)
    first: Array  # (heads,)
    last: Array  # (heads,)


def deal(counts: Array, programs: int) -> Dealt:
    """Stream-K: contiguous shares that differ by one tile at most, of heads with so many tiles.

    Sanovar et al. 2024, arXiv:2405.10480.
    """
    whole = lambda x: x.astype(jnp.int32)
    ends = whole(jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts)]))
    busy = jnp.clip(ends[-1], 1, programs)  # programs with at least a tile, if there is one
    starts = jnp.minimum(jnp.arange(programs + 1), busy) * ends[-1] // busy
    heads = jnp.searchsorted(ends, starts[:-1], side="right") - 1
    first = jnp.searchsorted(starts, ends[:-1], side="right") - 1
    last = jnp.searchsorted(starts, ends[1:], side="left")
    last = jnp.where(counts > 0, last, first)  # a head without tiles has no parts
    return Dealt(ends, *map(whole, (starts, heads, first, last)))


def _split_pass(plan: Plan, x: Arrays, holes: str, more: dict[str, bool], out: Any) -> Any:
    """The same for at most 16 queries, whose tiles of keys are dealt to `split` programs."""
    (B, T, N, _), K, (bounds, entries) = x.q.shape, x.k.shape[2], x.of_rows
    pack = 1 << (N // K - 1).bit_length()
    tile = replace(plan.tiling, block_q=max(16, pack << (T - 1).bit_length()))
    text = _letters(plan, x, tile, x.of_rows, ROWS=tile.block_q // pack, PACK=pack, **more) + holes
    text += _source("split_body.py")
    counts = (bounds[:, :, 0, 2] - bounds[:, :, 0, 0])[:, np.arange(K) * bounds.shape[1] // K]
    dealt = deal(jnp.broadcast_to(jnp.asarray(counts), (B, K)).reshape(-1), plan.split)
    slots, row = (plan.split + B * K, tile.block_q), jnp.float32
    parts = {
        "m_part": jax.ShapeDtypeStruct(slots, row),
        "sums_part": (jax.ShapeDtypeStruct(slots, row),) * len(out["sums_out"]),
        "part": jax.ShapeDtypeStruct((*slots, padded(x.v.shape[3])), row),
    }
    arguments = {
        **_common(plan, x), "bounds": bounds, "entries": entries, "ends": dealt.ends,
        "starts": dealt.starts, "heads": dealt.heads,
    }  # fmt: skip
    got = _launch(plan, tile, "split", text, arguments, parts, (plan.split,))
    arguments = {**got, "first": dealt.first, "last": dealt.last, "ps": x.params}
    return _launch(plan, replace(tile, stages=1), "combine", text, arguments, out, (K, B))


# ------------------------------------------------------------------------------------ backward


class Cotangents(NamedTuple):
    """What the backward kernels need besides the arguments.

    g    (B,T,N,D) the cotangent of results, or of values
    r    (B,N,T) what it is multiplied by to be that of values
    dL   (B,N,T) the cotangent of the sum in the denominator
    m    (B,N,T) the reference, zero for rows without keys
    stats        rows (B,N,T) of statistics
    more         of the last stage: its reference (one row, or none without a stage), the
                 statistics before it, the cotangents of its sums
    """

    g: Array
    r: Array
    dL: Array
    m: Array
    stats: Rows
    more: tuple[Rows, Rows, Rows]


_COTANGENT_HEADS: Any = Cotangents(2, 1, 1, 1, 1, 1)  # type: ignore[arg-type]


def _pull(plan: Plan, before: int) -> Callable[..., Any]:
    """(weight, cotangent of s, those of params) of one pair, from its terms and the last stage's.

    more: reference of the stage, `before` statistics, then cotangents of its sums.
    """
    n = plan.normalizer
    terms = weigh_terms(n)

    def pull(s, m, stats, params, more, df, dL):
        f, back = jax.vjp(lambda s, p: terms(s, m, stats, p), s, params)
        ds, dp = back((df, dL)[: len(f)])
        if n.stages:
            top, early, d_sums = more[0], more[1 : 1 + before], more[1 + before :]
            stage = lambda s, p: tuple(n.stages[-1].terms(s, top, early, p))
            ds_more, dp_more = jax.vjp(stage, s, params)[1](tuple(d_sums))
            ds, dp = ds + ds_more, jax.tree.map(jnp.add, dp, dp_more)
        return f[0], ds, tuple(dp)

    return pull


def _pull_statistics(plan: Plan) -> Callable[..., Any]:
    """(weight, cotangent of s, those of statistics) of one pair."""
    terms = weigh_terms(plan.normalizer)

    def pull(s, m, stats, params, more, df, dL):
        f, back = jax.vjp(lambda s, t: terms(s, m, t, params), s, stats)
        ds, d_stats = back((df, dL)[: len(f)])
        return f[0], ds, tuple(d_stats)

    return pull


def _back_arguments(plan: Plan, x: Arrays, c: Cotangents) -> dict[str, Any]:
    return {
        **_common(plan, x), "g": c.g, "r": c.r, "dL": c.dL, "m": c.m, "stats": c.stats,
        "more": sum(c.more, ()),
    }  # fmt: skip


def _back_holes(plan: Plan, x: Arrays, c: Cotangents, pull: Callable[..., Any]) -> str:
    text = _holes(plan, x) + pieces.score_back(_shaped(plan.mods, x.operands))
    text += pieces.terms_back(pull, len(c.stats), _length(c.more), len(x.params))
    return text + pieces.rows("load_rows", len(c.stats)) + pieces.rows("load_more", _length(c.more))


def _length(more: tuple[Rows, Rows, Rows]) -> int:
    return sum(map(len, more))


def _operand_sums(plan: Plan, kind: str) -> int:
    return sum(o.sums == kind for mod in plan.mods for o in mod.operands)


@over_examples((_HEADS, _COTANGENT_HEADS), 1)
def statistics_back(plan: Plan, x: Arrays, c: Cotangents) -> Rows:
    """The cotangents (B,N,T) of the statistics."""
    text = _letters(plan, x, plan.rows, x.of_rows, WEIGHS=False)
    text += _back_holes(plan, x, c, _pull_statistics(plan))
    text += pieces.gradients(len(c.stats), 0, "(BM, BN)")
    return _rows_pass(plan, x, c, text, len(c.stats), None)["by_row"]


@over_examples((_HEADS, _COTANGENT_HEADS), (2, 1))
def rows_back(plan: Plan, x: Arrays, c: Cotangents) -> tuple[Array, Rows]:
    """dq over scale (B,T,N,H), and sums over keys (B,N,T): of params, then of operands of rows."""
    sums = len(x.params) + _operand_sums(plan, "row")
    text = _letters(plan, x, plan.rows, x.of_rows, WEIGHS=True)
    text += _back_holes(plan, x, c, _pull(plan, len(c.more[1])))
    text += pieces.gradients(len(x.params), sums - len(x.params), "(BM, BN)")
    dq = jax.ShapeDtypeStruct(x.q.shape, x.q.dtype)
    out = _rows_pass(plan, x, c, text, sums, dq)
    return out["dq"], out["by_row"]


def _rows_pass(plan, x, c, text, sums, dq) -> dict[str, Any]:
    (B, T, N, _), tile = x.q.shape, plan.rows
    tiles = _tiles(T, _blocks(plan, tile)[0], tile.block_q)
    arguments = {
        **_back_arguments(plan, x, c), "bounds": x.of_rows.bounds, "entries": x.of_rows.entries,
        "ROW_TILES": tiles, "BLOCKS": x.of_rows.bounds.shape[2],
    }  # fmt: skip
    out: dict[str, Any] = {"by_row": (_rows_like(x),) * sums}
    if dq is None:
        arguments["dq"] = None
    else:
        out["dq"] = dq
    return _launch(plan, tile, "rows", text, arguments, out, (tiles, N, B))


@over_examples((_HEADS, _COTANGENT_HEADS), (2, 2, 1))
def columns_back(plan: Plan, x: Arrays, c: Cotangents) -> tuple[Array, Array, Rows]:
    """dk (B,S,K,H), dv (B,S,K,D), and sums over queries (B,N,S) of operands of columns."""
    (B, _, N, H), (S, K, D), tile = x.q.shape, x.v.shape[1:], plan.columns
    sums = _operand_sums(plan, "column")
    text = _letters(plan, x, tile, x.of_columns)
    text += _back_holes(plan, x, c, _pull(plan, len(c.more[1])))
    text += pieces.gradients(0, sums, "(BN, BM)")
    arguments = {
        **_back_arguments(plan, x, c), "bounds": x.of_columns.bounds,
        "entries": x.of_columns.entries, "BLOCKS": x.of_columns.bounds.shape[2],
    }  # fmt: skip
    out = {
        "dk": jax.ShapeDtypeStruct((B, S, K, H), x.k.dtype),
        "dv": jax.ShapeDtypeStruct((B, S, K, D), x.v.dtype),
        "by_column": (jax.ShapeDtypeStruct((B, N, S), jnp.float32),) * sums,
    }
    grid = (_tiles(S, _blocks(plan, tile)[1], tile.block_k), K, B)
    got = _launch(plan, tile, "columns", text, arguments, out, grid)
    return got["dk"], got["dv"], got["by_column"]


class Of(NamedTuple):
    """Which operand of pairs, and what it is shared by: its first two axes, of so many examples."""

    number: int
    lead: int
    heads: int
    examples: int


def pair_back(plan: Plan, number: int, lead: tuple[int, int], x: Arrays, c: Cotangents) -> Array:
    """The cotangent of the operand of pairs of this number, (*lead,T,S); O(T S) memory."""
    return _pair_back((plan, Of(number, *lead, x.q.shape[0]), "pairs"), x, c)


def table_back(plan: Plan, number: int, lead: tuple[int, int], x: Arrays, c: Cotangents) -> Array:
    """The same summed over tiles of equal distances: (*lead, diagonals, size, size).

    Diagonal d holds keys from (d - rows + 1) size on for queries from 0 on, with `rows` tiles of
    queries; positions are 0, 1, 2 ...  O((T + S) size) memory.
    """
    size = min(plan.rows.block_q, plan.rows.block_k)
    square = replace(plan, rows=replace(plan.rows, block_q=size, block_k=size))
    return _pair_back((square, Of(number, *lead, x.q.shape[0]), "diagonals"), x, c)


@over_examples((_HEADS, _COTANGENT_HEADS), 1)
def _pair_back(key: tuple[Plan, Of, str], x: Arrays, c: Cotangents) -> Array:
    plan, of, function = key
    (B, T, N, _), S, tile = x.q.shape, x.k.shape[1], plan.rows
    # vmap has made more examples, or other devices have the rest of them
    lead = B if of.lead > 1 else max(1, B // of.examples)
    heads = N if of.heads > 1 else 1
    text = _letters(plan, x, tile, None)
    text += _back_holes(plan, x, c, _pull(plan, len(c.more[1])))
    text += _source("pairs_body.py") + pieces.pair(of.number)
    arguments = {**_back_arguments(plan, x, c), "OUT_B": lead, "OUT_N": heads}
    rows, columns = -(-T // tile.block_q), -(-S // tile.block_k)
    if function == "pairs":
        shape, grid = (T, S), (rows, columns, lead * heads)
    else:
        shape = (rows + columns - 1, tile.block_q, tile.block_k)
        grid = (shape[0], lead * heads)
    out = {"out": jax.ShapeDtypeStruct((lead, heads, *shape), jnp.float32)}
    return _launch(plan, tile, function, text, arguments, out, grid)["out"]
