"""Sums over the tiles of the score matrix: the loops of engine 1, forward and backward.

A row of tiles keeps a `normalizers.State`, so any order of tiles gives the same result; EMPTY tiles
are not visited, FULL ones are not masked.  The backward pass computes each tile again from the row
statistics: O(T + S) memory.

The keys of a call may come in parts, one after the other: all at once (`Blockwise`), or from device
to device around a ring.  So a pass over all keys is asked of a function:

    fold(visit, carry)         visit(part, carry) -> carry for every part of the keys
    fold_back(visit, grads)    the same, where visit(part, grads) adds to the gradients of its part
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core import normalizers
from attnjax.core.masks import FULL
from attnjax.core.normalizers import (
    Normalizer,
    Rows,
    Stage,
    State,
    lowest,
    new_reference,
    zero_masked,
)
from attnjax.core.pairwise import relative
from attnjax.core.pairwise.operands import (
    Tile,
    add_at,
    add_to_tile,
    chosen_rows,
    cut_to_tile,
    put_at,
    span,
    take_at,
)
from attnjax.core.pairwise.request import (
    Request,
    allowed,
    cut_operands,
    modify,
    product,
    transposed_product,
    weighted_sum,
    weighted_values,
)
from attnjax.core.pairwise.tile_list import TileList
from attnjax.core.sharding import pvary_like
from attnjax.typing import Array

Schedules = tuple[TileList, ...]


class Inputs(NamedTuple):
    """The part of a call that gradients reach."""

    q: Array
    k: Array
    v: Array
    v_table: Array | None
    operands: tuple[tuple[Array, ...], ...]
    params: tuple[Array, ...]


class Saved(NamedTuple):
    """What the backward pass needs of the forward one: O(T) numbers."""

    m: Array  # of the last pass
    stats: Rows
    last_stage: tuple[Array, Rows, Rows]  # reference, sums, stats before it


def split(request: Request) -> tuple[Inputs, Request]:
    """A call as (differentiable arrays, the rest): what a custom VJP has to tell apart."""
    inputs = Inputs(
        request.q, request.k, request.v, request.v_table,
        tuple(mod.operands for mod in request.mods), request.normalizer.params,
    )  # fmt: skip
    mods = tuple(replace(mod, operands=()) for mod in request.mods)
    rest = replace(
        request, q=None, k=None, v=None, v_table=None,
        mods=mods, normalizer=replace(request.normalizer, params=()),
    )  # fmt: skip
    return inputs, rest


class KeyShard(NamedTuple):
    """Some of the keys, with the queries, and the tiles that they form with them."""

    x: Inputs
    rest: Request
    schedules: Schedules


class Grads(NamedTuple):
    """Gradients of `Inputs` while they are summed; those of k and v are transposed."""

    q: Array
    kT: Array  # (B,K,H,S)
    vT: Array  # (B,K,D,S)
    v_table: Array | None
    operands: tuple[tuple[Array, ...], ...]
    params: tuple[Array, ...]


KeyFold = Callable[[Callable[[KeyShard, Any], Any], Any], Any]


# --------------------------------------------------------------------------------------- tiles


def _tile(rest: Request, schedule: TileList, row: Array, column: Array) -> Tile:
    keys = span(column * schedule.block_k, schedule.block_k, rest.k_positions)
    if schedule.rows is not None:
        return Tile(chosen_rows(jnp.asarray(schedule.rows)[row], rest.q_positions), keys)
    at = row * schedule.block_q
    return Tile(span(at, schedule.block_q, rest.q_positions), keys)


def _nth(rest: Request, schedule: TileList, number: Array) -> tuple[Tile, Array]:
    """A tile of the list, and its kind."""
    row, column, kind = jnp.asarray(schedule.entries)[number]
    return _tile(rest, schedule, row, column), kind


def _visit(count: Array | int, visit, carry):
    """visit(carry, number) for so many numbers."""
    if isinstance(count, jax.Array):
        return lax.fori_loop(0, count, lambda i, carry: visit(carry, i), carry)
    numbers = jnp.arange(count, dtype=jnp.int32)
    return lax.scan(lambda carry, i: (visit(carry, i), None), carry, numbers)[0]


def _tiles_of(schedule: TileList) -> Array | int:
    return len(schedule.entries) if schedule.used is None else schedule.used


class Cut(NamedTuple):
    """One tile of everything, and its scores."""

    tile: Tile
    q: Array
    k: Array
    v: Array
    raw: Array  # scaled products, before mods
    operands: tuple[tuple[Array, ...], ...]
    ok: Array | None  # None in FULL tiles
    poison: Array  # NaN where a FULL tile holds a bad query or key: (B,N,t,1)


def _cut(x: Inputs, rest: Request, tile: Tile, kind: int) -> Cut:
    rows = lambda a, at: take_at(a, at, -2)
    mods = [replace(m, operands=o) for m, o in zip(rest.mods, x.operands, strict=True)]
    operands = cut_operands(tuple(mods), tile)
    q, k, v = rows(x.q, tile.q), rows(x.k, tile.k), rows(x.v, tile.k)
    q_bad = cut_to_tile("query", rest.q_poison, tile)
    k_bad = cut_to_tile("key", rest.k_poison, tile)
    if kind == FULL:  # all keys are seen by all queries: no need to poison score by score
        poison = q_bad + jnp.sum(k_bad, axis=-1, keepdims=True)
        return Cut(tile, q, k, v, product(q, k), operands, None, poison)
    ok = (tile.k.start + jnp.arange(tile.k.size) < rest.shape.S)[None, None, None, :]
    if tile.q.rows is not None:
        ok = ok & (tile.q.rows < rest.shape.T)[:, None]
    masked = allowed(rest.mask, tile)
    ok = ok if masked is None else masked & ok
    raw = product(q, k)
    return Cut(tile, q, k, v, raw, operands, jnp.broadcast_to(ok, raw.shape), q_bad + k_bad)


def _scores(rest: Request, cut: Cut, raw: Array, operands: Any) -> Array:
    """Modified scores; poisoned one by one where a mask decides who sees the poison."""
    s = modify(rest.mods, raw, operands, cut.tile, cut.ok)
    return s if cut.ok is None else s + cut.poison


def _by_kind(schedule: TileList, kind: Array, visit):
    """visit(kind) for the kind of this tile, compiled once per kind that may occur."""
    branches = [functools.partial(visit, k) for k in schedule.kinds]
    if len(branches) == 1:
        return branches[0]()
    at = sum(jnp.where(kind >= k, 1, 0) for k in schedule.kinds[1:])
    return lax.switch(at, branches)


def _take_rows(tree: Any, tile: Tile) -> Any:
    return jax.tree.map(lambda a: take_at(a, tile.q, -2), tree)


def _put_rows(tree: Any, part: Any, tile: Tile) -> Any:
    return jax.tree.map(lambda a, b: put_at(a, b, tile.q, -2), tree, part)


# ------------------------------------------------------------------------------------- forward


def _state_of_none(q: Array, terms: int, D: int) -> State:
    rows = lambda fill, width=1: jnp.full((*q.shape[:-1], width), fill, q.dtype)
    return State(rows(lowest(q.dtype)), tuple(rows(0.0) for _ in range(terms)), rows(0.0, D))


def empty_state(n: Normalizer, q: Array, D: int) -> State:
    """The state of rows that have seen no key."""
    state = _state_of_none(q, 0 if n.denominator is None else 1, D)
    if n.floor is None:
        return state
    floor = jnp.broadcast_to(lax.stop_gradient(n.floor(n.params)), state.m.shape)
    return state._replace(m=jnp.maximum(state.m, floor))


def _accumulate(part: KeyShard, state: State, stats, peak, rescale, terms, weighs: bool) -> State:
    """One pass over the tiles; terms(s, m, stats) are summed, the first times v if `weighs`."""
    x, rest, schedules = part

    def visit_tile(schedule: TileList, here: Rows, number: Array, old: State) -> State:
        tile, kind_here = _nth(rest, schedule, number)

        def visit(kind: int) -> State:
            cut = _cut(x, rest, tile, kind)
            s = _scores(rest, cut, cut.raw, cut.operands)
            top = new_reference(old.m, s, cut.ok, peak)
            m = normalizers.reference(top)
            parts = zero_masked(cut.ok, *terms(normalizers.fill_masked(cut.ok, s, m), m, here))
            sums = parts[1:] if weighs else parts
            poison = cut.poison if cut.ok is None else jnp.zeros_like(m)
            fade = rescale(old.m, top) if peak is not None else 1.0
            sums = tuple(
                o * fade + jnp.sum(t, axis=-1, keepdims=True) + poison
                for o, t in zip(old.sums, sums, strict=True)
            )
            if not weighs:
                return State(top, sums, old.values)
            new = weighted_values(parts[0], cut.v, x.v_table, tile)
            return State(top, sums, old.values * fade + new + poison)

        return _by_kind(schedule, kind_here, visit)

    state = pvary_like(state, (part, stats))
    for schedule in schedules:
        ends = jnp.asarray(schedule.row_ends)

        def visit_row(state: State, row: Array, schedule=schedule, ends=ends) -> State:
            tile = _tile(rest, schedule, row, jnp.zeros_like(row))
            old, here = _take_rows((state, stats), tile)
            visit = functools.partial(visit_tile, schedule, here)
            if schedule.rows is not None:  # one tile a row
                return _put_rows(state, visit(row, old), tile)
            new = lax.fori_loop(ends[row], ends[row + 1], visit, old)
            return _put_rows(state, new, tile)

        one_each = schedule.rows is not None
        count = _tiles_of(schedule) if one_each else len(schedule.row_ends) - 1
        state = _visit(count, visit_row, state)
    return state


def _stage(x: Inputs, fold: KeyFold, stage: Stage, stats: Rows):
    """The stage's reference and sums over all keys."""
    count = len(jax.eval_shape(lambda s: stage.terms(s, s, stats, x.params), x.q[..., :1]))
    terms = lambda s, m, here: stage.terms(s, m, here, x.params)
    visit = lambda part, state: _accumulate(
        part, state, stats, stage.peak, stage.rescale, terms, weighs=False
    )
    state = fold(visit, _state_of_none(x.q, count, 0))
    return normalizers.reference(state.m), state.sums


def _statistics(x: Inputs, n: Normalizer, fold: KeyFold):
    """All stages: the stats, and (reference, sums, stats before) of the last round."""
    stats: Rows = ()
    last: tuple = ((), (), ())
    for number, stage in enumerate(n.stages):
        final = number + 1 == len(n.stages)

        def round_(stats: Rows, stage: Stage = stage) -> Rows:
            m, sums = _stage(x, fold, stage, stats)
            return lax.stop_gradient(stage.finish(m, sums, stats, x.params))

        repeat = stage.repeat - 1 if final else stage.repeat
        if repeat == 1:
            stats = round_(stats)
        elif repeat > 1:
            stats = lax.fori_loop(0, repeat, lambda _, s: round_(s), stats)  # noqa: B023
        if final:
            m, sums = _stage(x, fold, stage, stats)
            last = (m, sums, stats)
            stats = stage.finish(m, sums, stats, x.params)
    return stats, last


def forward(x: Inputs, rest: Request, fold: KeyFold) -> tuple[State, Saved]:
    """The state of all keys, and what `backward` needs."""
    n = replace(rest.normalizer, params=x.params)
    stats, last = _statistics(x, n, fold)

    def terms(s: Array, m: Array, here: Rows) -> Rows:
        w = n.numerator(s, m, here, x.params)
        return (w,) if n.denominator is None else (w, n.denominator(s, m, here, x.params))

    visit = lambda part, state: _accumulate(
        part, state, stats, n.peak, n.rescale, terms, weighs=True
    )
    state = fold(visit, empty_state(n, x.q, rest.shape.D))
    return state, Saved(state.m, stats, last)


# ------------------------------------------------------------------------------------ backward


def backward(
    x: Inputs, rest: Request, saved: Saved, cotangents: State, fold: KeyFold, fold_back: KeyFold
) -> Inputs:
    """Cotangents of `Inputs`, tile by tile.

    A state is the sums A = sum f v and L = sum g; each tile turns their cotangents dA and dL into
    ds by the elementwise derivatives of f and g, and ds into the rest.  A stage first needs the
    cotangent of its statistics: one more pass.  The reference m has none: no result depends on it.
    """
    n, params, K = rest.normalizer, x.params, rest.shape.K
    m = normalizers.reference(saved.m)
    dA, dL = cotangents.values, cotangents.sums[0] if cotangents.sums else None

    def final(s, here_m, here, p):
        f = n.numerator(s, here_m, here, p)
        return (f,) if n.denominator is None else (f, n.denominator(s, here_m, here, p))

    def from_weights(cut: Cut, dA: Array, dL: Array | None):
        """Cotangents of the terms of the last pass."""
        df = product(dA, cut.v)
        if (v_table := x.v_table) is not None:
            by_distance = lambda w: relative.sum_by_distance(w, v_table, cut.tile)
            df = df + jax.linear_transpose(by_distance, df)(dA)[0]
        return (df,) if dL is None else (df, jnp.broadcast_to(dL, df.shape))

    def elementwise(cut: Cut, s: Array, terms, here_m, here):
        """The terms, zero where hidden, as a function of what they depend on."""
        hidden = normalizers.fill_masked(cut.ok, s, here_m)
        wrap = lambda s, stats, p: zero_masked(cut.ok, *terms(s, here_m, stats, p))
        return jax.vjp(wrap, hidden, here, params)

    def statistic_pass(part: KeyShard, d_stats: Rows) -> Rows:
        def visit_tile(schedule: TileList, d_stats: Rows, number: Array) -> Rows:
            tile, kind_here = _nth(part.rest, schedule, number)
            here_m, here, hA, hL = _take_rows((m, saved.stats, dA, dL), tile)

            def visit(kind: int) -> Rows:
                cut = _cut(part.x, part.rest, tile, kind)
                s = _scores(part.rest, cut, cut.raw, cut.operands)
                _, pull = elementwise(cut, s, final, here_m, here)
                return pull(from_weights(cut, hA, hL))[1]

            new = _by_kind(schedule, kind_here, visit)
            old = _take_rows(d_stats, tile)
            return _put_rows(d_stats, jax.tree.map(jnp.add, old, new), tile)

        for schedule in part.schedules:
            visit = functools.partial(visit_tile, schedule)
            d_stats = _visit(_tiles_of(schedule), visit, d_stats)
        return d_stats

    # Cotangents of the last stage's sums.
    everything = (x, rest, saved, cotangents)
    d_params = pvary_like(jax.tree.map(jnp.zeros_like, params), everything)
    d_sums: Rows = ()
    if n.stages:
        stage = n.stages[-1]
        stage_m, sums, before = saved.last_stage
        d_stats = pvary_like(jax.tree.map(jnp.zeros_like, saved.stats), everything)
        d_stats = fold(statistic_pass, d_stats)
        _, pull = jax.vjp(lambda s, p: stage.finish(stage_m, s, before, p), sums, params)
        d_sums, more = pull(d_stats)
        d_params = jax.tree.map(jnp.add, d_params, more)

    # XLA runs a product that contracts the rows of both factors (dk = ds^T q) several times slower
    # than one that does not, so dk and dv are kept transposed, with q and dA transposed once.
    flip = lambda a: jnp.swapaxes(a, -1, -2)
    qT, dAT = flip(x.q), flip(dA)
    columns = lambda a, at: take_at(a, at, -1)

    def gradient_pass(part: KeyShard, grads: Grads) -> Grads:
        def visit_tile(schedule: TileList, grads: Grads, number: Array) -> Grads:
            tile, kind_here = _nth(part.rest, schedule, number)
            here_m, here, hA, hL = _take_rows((m, saved.stats, dA, dL), tile)

            def visit(kind: int) -> Grads:
                cut = _cut(part.x, part.rest, tile, kind)
                s, mods_pull = jax.vjp(
                    lambda raw, ops: _scores(part.rest, cut, raw, ops), cut.raw, cut.operands
                )
                weights, pull = elementwise(cut, s, final, here_m, here)
                ds, _, dp = pull(from_weights(cut, hA, hL))
                if n.stages:
                    at = _take_rows((stage_m, before, d_sums), tile)
                    terms, pull = elementwise(cut, s, stage.terms, at[0], at[1])
                    more = [jnp.broadcast_to(d, t.shape) for d, t in zip(at[2], terms, strict=True)]
                    ds_more, _, dp_more = pull(tuple(more))
                    ds, dp = ds + ds_more, jax.tree.map(jnp.add, dp, dp_more)
                if cut.ok is not None:
                    ds = jnp.where(cut.ok, ds, 0.0)
                d_raw, d_operands = mods_pull(ds)
                return Grads(
                    weighted_sum(d_raw, cut.k),
                    transposed_product(columns(qT, tile.q), d_raw, K),
                    transposed_product(columns(dAT, tile.q), weights[0], K),
                    _table_cotangent(x.v_table, weights[0], hA, tile),
                    d_operands,
                    dp,
                )

            new = _by_kind(schedule, kind_here, visit)
            d_operands = tuple(
                tuple(
                    add_to_tile(kind, old, part, tile)
                    for kind, old, part in zip(mod.kinds, olds, parts, strict=True)
                )
                for mod, olds, parts in zip(rest.mods, grads.operands, new.operands, strict=True)
            )
            return Grads(
                add_at(grads.q, new.q, tile.q, -2),
                add_at(grads.kT, new.kT, tile.k, -1),
                add_at(grads.vT, new.vT, tile.k, -1),
                jax.tree.map(jnp.add, grads.v_table, new.v_table),
                d_operands,
                jax.tree.map(jnp.add, grads.params, new.params),
            )

        for schedule in part.schedules:
            visit = functools.partial(visit_tile, schedule)
            grads = _visit(_tiles_of(schedule), visit, grads)
        return grads

    nothing = Grads(x.q, flip(x.k), flip(x.v), x.v_table, x.operands, params)
    nothing = pvary_like(jax.tree.map(jnp.zeros_like, nothing), everything)
    grads = fold_back(gradient_pass, nothing._replace(params=d_params))
    d_k, d_v = flip(grads.kT), flip(grads.vT)
    return Inputs(grads.q, d_k, d_v, grads.v_table, grads.operands, grads.params)


def _table_cotangent(v_table: Array | None, w: Array, dA: Array, tile: Tile) -> Array | None:
    if v_table is None:
        return None
    by_table = lambda table: relative.sum_by_distance(w, table, tile)
    return jax.linear_transpose(by_table, v_table)(dA)[0]
