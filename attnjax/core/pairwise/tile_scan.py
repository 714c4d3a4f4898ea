"""Sums over the tiles of the score matrix: the loops of engine 1.

A row of tiles keeps a `normalizers.State`, so any order of tiles gives the same result; EMPTY tiles
are not visited, FULL ones are not masked.  The backward pass, `tile_gradients`, computes each tile
again from the row statistics: O(T + S) memory.

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
from attnjax.core.dropout import drop
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
from attnjax.core.pairwise.operands import (
    Tile,
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
    """What later passes need of the forward one: O(T) numbers."""

    m: Array  # of the last pass
    stats: Rows
    last_stage: tuple[Array, Rows, Rows]  # reference, sums, stats before it


def split(request: Request) -> tuple[Inputs, Request]:
    """A call as (what derivatives are taken by, the rest)."""
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


def join(x: Inputs, rest: Request) -> Request:
    """The call again."""
    mods = zip(rest.mods, x.operands, strict=True)
    return replace(
        rest, q=x.q, k=x.k, v=x.v, v_table=x.v_table,
        mods=tuple(replace(mod, operands=operands) for mod, operands in mods),
        normalizer=replace(rest.normalizer, params=x.params),
    )  # fmt: skip


class KeyShard(NamedTuple):
    """Some of the keys, with the queries, and the tiles that they form with them."""

    x: Inputs
    rest: Request
    schedules: Schedules


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


def _repeat(count: Array | int, visit: Callable[[Any, Array], Any], carry: Any) -> Any:
    """carry after visit(carry, number) for number = 0, ..., count - 1."""
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
    operands = cut_operands(join(x, rest).mods, tile)
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


def scores_of(rest: Request, cut: Cut, raw: Array, operands: Any) -> Array:
    """Modified scores; poisoned one by one where a mask decides who sees the poison."""
    s = modify(rest.mods, raw, operands, cut.tile, cut.ok)
    return s if cut.ok is None else s + cut.poison


def seen_of(rest: Request, s: Array, cut: Cut) -> Cut:
    """The tile without scores that mods have made -inf, where a normalizer does not see to it."""
    if not rest.mods:
        return cut
    return cut._replace(ok=normalizers.hide_infinite(rest.normalizer, s, cut.ok))


def _by_kind(schedule: TileList, kind: Array, visit: Callable[[int], Any]) -> Any:
    """visit(kind) for the kind of this tile, compiled once per kind that may occur."""
    branches = [functools.partial(visit, k) for k in schedule.kinds]
    if len(branches) == 1:
        return branches[0]()
    branch = sum(jnp.where(kind >= k, 1, 0) for k in schedule.kinds[1:])
    return lax.switch(branch, branches)


def take_rows(tree: Any, tile: Tile) -> Any:
    return jax.tree.map(lambda a: take_at(a, tile.q, -2), tree)


def put_rows(tree: Any, part: Any, tile: Tile) -> Any:
    return jax.tree.map(lambda a, b: put_at(a, b, tile.q, -2), tree, part)


def each_tile(
    part: KeyShard,
    rows: Any,
    compute: Callable[[Cut, Any], Any],
    add: Callable[[Any, Any, Tile], Any],
    carry: Any,
) -> Any:
    """add(carry, compute(cut, its rows), tile) for every tile in turn; `rows` are (B,N,T,.)."""

    def visit(schedule: TileList, carry: Any, number: Array) -> Any:
        tile, kind = _nth(part.rest, schedule, number)
        here = take_rows(rows, tile)
        of_kind = lambda kind: compute(_cut(part.x, part.rest, tile, kind), here)
        return add(carry, _by_kind(schedule, kind, of_kind), tile)

    for schedule in part.schedules:
        carry = _repeat(_tiles_of(schedule), functools.partial(visit, schedule), carry)
    return carry


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


class Pass(NamedTuple):
    """What one pass over the keys sums up."""

    terms: Callable[[Array, Array, Rows], Rows]  # (s, m, stats) -> terms of each score
    weighs: bool  # whether the first term weighs the values
    peak: Any
    rescale: Any


def _add_tile(pass_: Pass, part: KeyShard, cut: Cut, old: State, stats: Rows) -> State:
    s = scores_of(part.rest, cut, cut.raw, cut.operands)
    ok = seen_of(part.rest, s, cut).ok
    top = new_reference(old.m, s, ok, pass_.peak)
    m = normalizers.reference(top)
    terms = zero_masked(ok, *pass_.terms(normalizers.fill_masked(ok, s, m), m, stats))
    poison = cut.poison if cut.ok is None else jnp.zeros_like(m)
    rescale = pass_.rescale(old.m, top) if pass_.peak is not None else 1.0
    sums = tuple(
        old_sum * rescale + jnp.sum(term, axis=-1, keepdims=True) + poison
        for old_sum, term in zip(old.sums, terms[1:] if pass_.weighs else terms, strict=True)
    )
    if not pass_.weighs:
        return State(top, sums, old.values)
    kept = drop(part.rest.dropout, terms[0], cut.tile)
    new = weighted_values(kept, cut.v, part.x.v_table, cut.tile)
    return State(top, sums, old.values * rescale + new + poison)


def _accumulate(pass_: Pass, stats: Rows, part: KeyShard, state: State) -> State:
    """One pass over the tiles, row by row: the state of a row is read and written once."""

    def visit_tile(schedule: TileList, here: Rows, number: Array, old: State) -> State:
        tile, kind = _nth(part.rest, schedule, number)
        of_kind = lambda kind: _add_tile(
            pass_, part, _cut(part.x, part.rest, tile, kind), old, here
        )
        return _by_kind(schedule, kind, of_kind)

    def visit_row(schedule: TileList, state: State, row: Array) -> State:
        tile = _tile(part.rest, schedule, row, jnp.zeros_like(row))
        old, here = take_rows((state, stats), tile)
        if schedule.rows is not None:  # one tile a row
            return put_rows(state, visit_tile(schedule, here, row, old), tile)
        ends = jnp.asarray(schedule.row_ends)
        visit = functools.partial(visit_tile, schedule, here)
        return put_rows(state, lax.fori_loop(ends[row], ends[row + 1], visit, old), tile)

    state = pvary_like(state, (part, stats))
    for schedule in part.schedules:
        one_each = schedule.rows is not None
        count = _tiles_of(schedule) if one_each else schedule.row_ends.shape[0] - 1
        state = _repeat(count, functools.partial(visit_row, schedule), state)
    return state


def _stage(x: Inputs, fold: KeyFold, stage: Stage, stats: Rows) -> tuple[Array, Rows]:
    """The stage's reference and sums over all keys."""
    count = len(jax.eval_shape(lambda s: stage.terms(s, s, stats, x.params), x.q[..., :1]))
    terms = lambda s, m, here: stage.terms(s, m, here, x.params)
    pass_ = Pass(terms, False, stage.peak, stage.rescale)
    state = fold(functools.partial(_accumulate, pass_, stats), _state_of_none(x.q, count, 0))
    return normalizers.reference(state.m), state.sums


def _statistics(x: Inputs, n: Normalizer, fold: KeyFold):
    """All stages: the stats, and (reference, sums, stats before) of the last round."""
    stats: Rows = ()
    last: tuple = ((), (), ())
    for number, stage in enumerate(n.stages):

        def round_(stats: Rows, stage: Stage = stage) -> tuple[Rows, Any]:
            m, sums = _stage(x, fold, stage, stats)
            return stage.finish(m, sums, stats, x.params), (m, sums, stats)

        final = number + 1 == len(n.stages)
        early = max(stage.repeat - 2, 0) if final else stage.repeat
        if early == 1:
            stats = lax.stop_gradient(round_(stats)[0])
        elif early > 1:
            stats = lax.fori_loop(0, early, lambda _, s: lax.stop_gradient(round_(s)[0]), stats)  # noqa: B023
        if final and stage.repeat == 1:
            stats, last = round_(stats)
        elif final:
            two = lax.scan(lambda stats, _: round_(stats), stats, length=2)  # noqa: B023
            stats, last = two[0], jax.tree.map(lambda x: x[-1], two[1])
    return stats, last


def last_terms(n: Normalizer) -> Callable[[Array, Array, Rows, Rows], Rows]:
    """Terms (s, m, stats, params) of the pass that weighs the values: numerator, denominator."""

    def terms(s: Array, m: Array, stats: Rows, params: Rows) -> Rows:
        w = n.numerator(s, m, stats, params)
        return (w,) if n.denominator is None else (w, n.denominator(s, m, stats, params))

    return terms


def forward(x: Inputs, rest: Request, fold: KeyFold) -> tuple[State, Saved]:
    """The state of all keys, and what `backward` needs."""
    n = replace(rest.normalizer, params=x.params)
    stats, last = _statistics(x, n, fold)
    terms = last_terms(n)
    pass_ = Pass(lambda s, m, here: terms(s, m, here, x.params), True, n.peak, n.rescale)
    state = fold(functools.partial(_accumulate, pass_, stats), empty_state(n, x.q, rest.shape.D))
    return state, Saved(state.m, stats, last)


def again(x: Inputs, rest: Request, saved: Saved, fold: KeyFold) -> State:
    """The state once more, of what is known: no reference is searched for, nothing is iterated."""
    n = replace(rest.normalizer, params=x.params)
    stats = saved.stats
    if n.stages:
        m, sums, before = saved.last_stage
        stage = n.stages[-1]
        last = Pass(lambda s, m, here: stage.terms(s, m, here, x.params), False, None, None)
        start = _state_of_none(x.q, len(sums), 0)._replace(m=m)
        sums = fold(functools.partial(_accumulate, last, before), start).sums
        stats = stage.finish(m, sums, before, x.params)
    terms = last_terms(n)
    pass_ = Pass(lambda s, m, here: terms(s, m, here, x.params), True, None, None)
    start = empty_state(n, x.q, rest.shape.D)._replace(m=saved.m)
    return fold(functools.partial(_accumulate, pass_, stats), start)
