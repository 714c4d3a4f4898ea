"""Sums over the tiles of the score matrix, backward: what `tile_scan` is for values, for gradients.

A state is the sums A = sum f v and L = sum g; each tile turns their cotangents dA and dL into ds by
the elementwise derivatives of f and g, and ds into the rest.  A stage first needs the cotangent of
its statistics: one more pass.  The reference m has none: no result depends on it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core import normalizers
from attnjax.core.dropout import drop
from attnjax.core.mods import Mod
from attnjax.core.normalizers import Rows, State, zero_masked
from attnjax.core.pairwise import relative
from attnjax.core.pairwise.operands import Tile, add_at, add_to_tile, take_at
from attnjax.core.pairwise.request import Request, product, transposed_product, weighted_sum
from attnjax.core.pairwise.tile_scan import (
    Cut,
    Inputs,
    KeyFold,
    KeyShard,
    Saved,
    each_tile,
    last_terms,
    put_rows,
    scores_of,
    seen_of,
    take_rows,
)
from attnjax.core.sharding import pvary_like
from attnjax.typing import Array


class Grads(NamedTuple):
    """Gradients of `Inputs` while they are summed; those of k and v are transposed."""

    q: Array
    kT: Array  # (B,K,H,S)
    vT: Array  # (B,K,D,S)
    v_table: Array | None
    operands: tuple[tuple[Array, ...], ...]
    params: tuple[Array, ...]


class StageRows(NamedTuple):
    """What a tile takes by its rows for the terms of the last stage, (B,N,T,1) each."""

    m: Array
    stats: Rows  # those before the stage
    d_sums: Rows


class BackwardRows(NamedTuple):
    """What a tile takes by its rows, (B,N,T,.) each."""

    m: Array
    stats: Rows
    dA: Array  # cotangent of the weighted values
    dL: Array | None  # of the denominator
    stage: StageRows | None


def _zeros_like(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _transposed(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


def backward(
    x: Inputs, rest: Request, saved: Saved, cotangents: State, fold: KeyFold, fold_back: KeyFold
) -> Inputs:
    """Cotangents of `Inputs`, tile by tile."""
    everything = (x, rest, saved, cotangents)
    zeros = lambda tree: pvary_like(_zeros_like(tree), everything)
    dA, dL = cotangents.values, cotangents.sums[0] if cotangents.sums else None
    rows = BackwardRows(normalizers.reference(saved.m), saved.stats, dA, dL, None)
    d_params = zeros(x.params)
    if rest.normalizer.stages:
        d_stats = fold(functools.partial(_statistics_back, rows), zeros(saved.stats))
        m, sums, before = saved.last_stage
        finish = lambda sums, p: rest.normalizer.stages[-1].finish(m, sums, before, p)
        d_sums, from_finish = jax.vjp(finish, sums, x.params)[1](d_stats)
        d_params = _add(d_params, from_finish)
        rows = rows._replace(stage=StageRows(m, before, d_sums))

    # XLA runs a product that contracts the rows of both factors (dk = ds^T q) several times slower
    # than one that does not, so dk and dv are kept transposed, with q and dA transposed once.
    columns = _transposed(x.q), _transposed(dA)
    start = Grads(x.q, _transposed(x.k), _transposed(x.v), x.v_table, x.operands, x.params)
    start = zeros(start)._replace(params=d_params)
    grads = fold_back(functools.partial(_gradients, rows, columns), start)
    return Inputs(
        grads.q,
        _transposed(grads.kT),
        _transposed(grads.vT),
        grads.v_table,
        grads.operands,
        grads.params,
    )


def _statistics_back(rows: BackwardRows, part: KeyShard, d_stats: Rows) -> Rows:
    """Adds the cotangents that the last pass gives the statistics."""

    def compute(cut: Cut, here: BackwardRows) -> Rows:
        s = scores_of(part.rest, cut, cut.raw, cut.operands)
        cut = seen_of(part.rest, s, cut)
        _, pull = _last_terms_vjp(part, cut, s, here)
        return pull(_cotangents_of_terms(part, cut, here))[1]

    def add(d_stats: Rows, new: Rows, tile: Tile) -> Rows:
        return put_rows(d_stats, _add(take_rows(d_stats, tile), new), tile)

    return each_tile(part, rows, compute, add, d_stats)


def _gradients(
    rows: BackwardRows, columns: tuple[Array, Array], part: KeyShard, grads: Grads
) -> Grads:
    """Adds the cotangents that the tiles of `part` give; columns are q and dA, transposed."""

    def compute(cut: Cut, here: BackwardRows) -> Grads:
        s, pull_mods = jax.vjp(
            lambda raw, operands: scores_of(part.rest, cut, raw, operands), cut.raw, cut.operands
        )
        cut = seen_of(part.rest, s, cut)
        weights, ds, d_params = _scores_back(part, cut, s, here)
        weights = drop(part.rest.dropout, weights, cut.tile)
        if cut.ok is not None:
            ds = jnp.where(cut.ok, ds, 0.0)
        d_raw, d_operands = pull_mods(ds)
        qT, dAT = (take_at(a, cut.tile.q, -1) for a in columns)
        return Grads(
            weighted_sum(d_raw, cut.k),
            transposed_product(qT, d_raw, part.rest.shape.K),
            transposed_product(dAT, weights, part.rest.shape.K),
            _table_cotangent(part.x.v_table, weights, here.dA, cut.tile),
            d_operands,
            d_params,
        )

    add = functools.partial(_add_grads, part.rest.mods)
    return each_tile(part, rows, compute, add, grads)


def _scores_back(
    part: KeyShard, cut: Cut, s: Array, here: BackwardRows
) -> tuple[Array, Array, Rows]:
    """The weights of the values, and the cotangents of the scores and of the parameters."""
    terms, pull = _last_terms_vjp(part, cut, s, here)
    ds, _, d_params = pull(_cotangents_of_terms(part, cut, here))
    if (stage := here.stage) is not None:
        of_stage = part.rest.normalizer.stages[-1].terms
        summed, pull = _terms_vjp(of_stage, cut, s, stage.m, stage.stats, part.x.params)
        d_terms = tuple(
            jnp.broadcast_to(d, term.shape) for d, term in zip(stage.d_sums, summed, strict=True)
        )
        ds_stage, _, d_params_stage = pull(d_terms)
        ds, d_params = ds + ds_stage, _add(d_params, d_params_stage)
    return terms[0], ds, d_params


def _last_terms_vjp(part: KeyShard, cut: Cut, s: Array, here: BackwardRows) -> tuple[Rows, Any]:
    terms = last_terms(part.rest.normalizer)
    return _terms_vjp(terms, cut, s, here.m, here.stats, part.x.params)


def _terms_vjp(
    terms: Callable[[Array, Array, Rows, Rows], Rows],
    cut: Cut,
    s: Array,
    m: Array,
    stats: Rows,
    params: Rows,
) -> tuple[Rows, Any]:
    """The terms, zero where masked, and their pullback to (s, stats, params)."""
    filled = normalizers.fill_masked(cut.ok, s, m)
    masked = lambda s, stats, params: zero_masked(cut.ok, *terms(s, m, stats, params))
    return jax.vjp(masked, filled, stats, params)


def _cotangents_of_terms(part: KeyShard, cut: Cut, here: BackwardRows) -> Rows:
    """Cotangents of the terms of the last pass: of numerator and denominator."""
    df = product(here.dA, cut.v)
    if (v_table := part.x.v_table) is not None:
        by_distance = lambda w: relative.sum_by_distance(w, v_table, cut.tile)
        df = df + jax.linear_transpose(by_distance, df)(here.dA)[0]
    df = drop(part.rest.dropout, df, cut.tile)
    return (df,) if here.dL is None else (df, jnp.broadcast_to(here.dL, df.shape))


def _add_grads(mods: Sequence[Mod], grads: Grads, new: Grads, tile: Tile) -> Grads:
    d_operands = tuple(
        tuple(
            add_to_tile(kind, total, more, tile)
            for kind, total, more in zip(mod.kinds, totals, mores, strict=True)
        )
        for mod, totals, mores in zip(mods, grads.operands, new.operands, strict=True)
    )
    return Grads(
        add_at(grads.q, new.q, tile.q, -2),
        add_at(grads.kT, new.kT, tile.k, -1),
        add_at(grads.vT, new.vT, tile.k, -1),
        _add(grads.v_table, new.v_table),
        d_operands,
        _add(grads.params, new.params),
    )


def _table_cotangent(v_table: Array | None, w: Array, dA: Array, tile: Tile) -> Array | None:
    if v_table is None:
        return None
    by_table = lambda table: relative.sum_by_distance(w, table, tile)
    return jax.linear_transpose(by_table, v_table)(dA)[0]
