"""Fused execution on a GPU: engine 1 and engine 3 through the Triton kernels in `kernels.flash`.

Mods, masks and normalizers are the same values as everywhere: what they compute for one pair is
traced, written as Triton, and takes its place in the kernels, derivatives included.  Kernels sum
over keys or over queries; what is done with a row of sums (the finish of a statistic, a last
division in the backward pass) stays in XLA.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core import masks, normalizers
from attnjax.core.derive import Static, in_reverse
from attnjax.core.normalizers import Normalizer, Rows, State, reference
from attnjax.core.numerics import divide
from attnjax.core.pairwise import relative, tile_scan
from attnjax.core.pairwise.blockwise import Blockwise
from attnjax.core.pairwise.operands import Tile, span
from attnjax.core.pairwise.request import Request
from attnjax.core.pairwise.triton import Triton
from attnjax.core.sharding import no_kernel, pvary_like
from attnjax.kernels import launch
from attnjax.kernels.emit import NotElementwise
from attnjax.kernels.flash import lists, pieces, triton
from attnjax.kernels.flash.pieces import Function, Operand
from attnjax.kernels.flash.triton import Arrays, Cotangents, Lists, Plan, Tiling
from attnjax.typing import Array


def unsupported(impl: Triton, request: Request) -> str | None:
    """The first reason why the kernels do not apply, or None."""
    z = request.shape
    if not impl.interpret and (reason := launch.missing()) is not None:
        return reason
    if (reason := no_kernel()) is not None:
        return reason
    if request.dtype not in (jnp.float16, jnp.bfloat16, jnp.float32):
        return f"dtype {jnp.dtype(request.dtype).name}: only float16, bfloat16 and float32"
    if max(z.H, z.D) > 256 or min(z.H, z.D) < 1:
        return f"H = {z.H}, D = {z.D}: only 1 to 256"
    if request.v_table is not None:
        return "relative values"
    if request.differs_by_example and request.selection is None:
        return "positions of each example"
    if request.dropout is not None:
        return "dropout of weights"
    for m in request.mods:
        if m.group != 1:
            return "mods: one that looks at groups of keys"
        if m.contract:
            return "mods: additive scores"
    if request.selection is not None:
        if any(x.sums == "pair" for f in _functions(request) for x in f.operands):
            return "mods: operands of pairs under a selection"
    mask = _mask_function(request)
    if isinstance(mask, str):
        return f"mask {request.mask!r}: {mask}"
    try:
        _emitted(_functions(request), mask and mask[0])
    except NotElementwise as error:
        return str(error)
    return None


def run(impl: Triton, request: Request) -> Array:
    """The weighted sum of values, (B,N,T,D)."""
    return _weighted_sum(*_apart(impl, request))


def state(impl: Triton, request: Request) -> State:
    """What the keys leave behind for each query, to be merged with what other keys leave."""
    return _state(*_apart(impl, request))


# Kernels give values and gradients; all other derivatives are those of the blockwise form.

_X = tuple[tile_scan.Inputs, Array | None]  # and the scale
_Rest = tuple[Static, Request]


def _apart(impl: Triton, request: Request) -> tuple[_X, _Rest]:
    x, rest = tile_scan.split(request)
    x = pvary_like((x, request.scale), request)
    return x, (Static(impl), replace(rest, scale=None))


def _call(x: _X, rest: _Rest) -> tuple[Triton, Request]:
    inputs, scale = x
    return rest[0].value, replace(tile_scan.join(inputs, rest[1]), scale=scale)


def _sum_by_kernels(x: _X, rest: _Rest) -> Array:
    impl, request = _call(x, rest)
    out = _run(impl, request, _Finish(_static(request.normalizer)))["out"]
    return out.transpose(0, 2, 1, 3).astype(request.q.dtype)


def _state_by_kernels(x: _X, rest: _Rest) -> State:
    got = _run(*_call(x, rest), None)
    rows = lambda x: x[..., None]
    return State(rows(got["m"]), tuple(map(rows, got["sums"])), got["out"].swapaxes(1, 2))


_weighted_sum = in_reverse(_sum_by_kernels, lambda x, rest: Blockwise().run(_call(x, rest)[1]))
_state = in_reverse(_state_by_kernels, lambda x, rest: Blockwise().state(_call(x, rest)[1]))


def tilings(dtype: Any, H: int, D: int, capability: int) -> tuple[Tiling, Tiling, Tiling]:
    """Tiles of the forward kernel, and of those that give dq and dk, dv: the largest known that
    spill no registers on a GPU of this compute capability (tests look)."""
    width, hopper = max(triton.padded(H), triton.padded(D)), capability >= 90
    if jnp.dtype(dtype).itemsize == 4:
        if width <= 64:
            return Tiling(64, 32, 8, 2), Tiling(32, 32, 8, 1), Tiling(32, 32, 8, 1)
        small = Tiling(16, 32, 8, 1) if width <= 128 else Tiling(16, 16, 8, 1)
        return Tiling(32, 32, 8, 1), small, small
    if width <= 64:
        return Tiling(128, 128, 8, 3), Tiling(64, 64, 4, 2), Tiling(64, 128, 8, 2)
    if width <= 128:
        forward = Tiling(128, 128, 8, 3) if hopper else Tiling(128, 64, 8, 3)
        columns = Tiling(32, 128, 8, 2) if hopper else Tiling(64, 64, 8, 2)
        return forward, Tiling(128, 64, 8, 3), columns
    return Tiling(64, 64, 8, 2), Tiling(32, 32, 4, 2), Tiling(32, 32, 4, 1)


# ------------------------------------------------------------------------- a call, for kernels


@dataclass(frozen=True)
class _Finish:
    """The last division, as an elementwise function."""

    normalizer: Normalizer

    def __call__(self, values: Any, sums: Rows, m: Any, params: Rows) -> Any:
        return normalizers.finish(replace(self.normalizer, params=params), State(m, sums, values))


def _static(n: Normalizer) -> Normalizer:
    return replace(n, params=())


def _functions(request: Request) -> tuple[Function, ...]:
    """The mods as the kernels take them."""

    def operand(kind: str, x: Array) -> Operand:
        kind = kind if kind.endswith("table") else "plain"
        return Operand(kind, x.shape)

    return tuple(
        Function(m.fn, tuple(map(operand, m.kinds, m.operands)), m.positions) for m in request.mods
    )


@functools.lru_cache(maxsize=256)
def _emitted(mods: tuple[Function, ...], mask: Function | None) -> None:
    """Raises NotElementwise where one of the functions is not."""
    pieces.score_back(mods)
    pieces.allowed(mask)


def _positions(request: Request) -> tuple[Array, Array]:
    """(B|1,X|1,T) and (B|1,X|1,S)."""
    z = request.shape
    own = lambda x, n: jnp.arange(n, dtype=jnp.int32) if x is None else x
    lift = lambda x: jnp.asarray(x, jnp.int32).reshape((1,) * (3 - x.ndim) + x.shape)
    return lift(own(request.q_positions, z.T)), lift(own(request.k_positions, z.S))


def _mask_function(request: Request) -> tuple[Function, tuple[Array, ...]] | str | None:
    """The mask as the kernels take it and its arrays; None: no mask; or why it has no such form."""
    if isinstance(request.mask, masks.Everything):
        return None
    function = request.mask.as_function(*_positions(request), request.shape.N)
    if isinstance(function, str):
        return function
    places = tuple(
        Operand("plain", x.array.shape, jnp.dtype(x.array.dtype).name)
        if x.cell is None
        else Operand("cells", x.array.shape, jnp.dtype(x.array.dtype).name, x.cell)
        for x in function.operands
    )
    return Function(function.fn, places, True), tuple(x.array for x in function.operands)


class _Inputs(NamedTuple):
    """All arrays of one attention; gradients reach those of `x` that are floating-point."""

    x: Arrays
    q_poison: Array  # (B,T,N,1), see `Request`
    k_poison: Array
    back_rows: Lists
    back_columns: Lists


def _run(impl: Triton, request: Request, finish: Callable[..., Any] | None) -> dict[str, Any]:
    """out (B,T,N,D), m and sums (B,N,T)."""
    z, (q_positions, k_positions) = request.shape, _positions(request)
    of_each = tilings(request.dtype, z.H, z.D, launch.capability())
    tiling, of_rows, of_columns = (_fitted(impl, t, request) for t in of_each)
    mask_function = _mask_function(request)
    assert not isinstance(mask_function, str), "supported tells before"
    mask, mask_operands = mask_function or (None, ())
    rows, back_rows = _lists(request, tiling)[0], _lists(request, of_rows)[0]
    back_columns = _lists(request, of_columns)[1]
    chosen = request.selection
    blocks = None if chosen is None else (chosen.block_q, chosen.block_k)
    plan = Plan(
        _functions(request), mask, _static(request.normalizer), finish, blocks,
        tiling, of_rows, of_columns,
        "tf32" if impl.tf32 else "ieee", impl.interpret, _programs(impl, request, rows),
    )  # fmt: skip
    tokens = lambda x: x.transpose(0, 2, 1, 3)
    narrow = lambda x: tokens(x).astype(request.dtype)
    scale = jnp.ones((), jnp.float32) if request.scale is None else request.scale
    x = Arrays(
        narrow(request.q), narrow(request.k), narrow(request.v), jnp.reshape(scale, (1,)),
        sum((m.operands for m in request.mods), ()), mask_operands, request.normalizer.params,
        None if request.q_positions is None else q_positions,
        None if request.k_positions is None else k_positions,
        rows, back_columns,
    )  # fmt: skip
    poison = tokens(request.q_poison), request.k_poison.transpose(0, 3, 1, 2)
    if request.k_poison.shape[1] != z.K:  # laid out for query heads
        poison = poison[0], poison[1][:, :, :: z.N // z.K]
    inputs = _Inputs(x, *poison, back_rows, back_columns)
    return _attend(plan, pvary_like(inputs, inputs))


def _fitted(impl: Triton, t: Tiling, request: Request) -> Tiling:
    """The tiling, no larger than what there is to do."""
    z, blocks = request.shape, request.selection
    most_q, most_k = (z.T, z.S) if blocks is None else (blocks.block_q, blocks.block_k)
    q = impl.block_q or min(t.block_q, triton.padded(most_q))
    # a tile of an operand takes as many registers as one of scores
    pairs = any(
        x.sums == "pair" and x.kind == "plain" for f in _functions(request) for x in f.operands
    )
    k = impl.block_k or min(t.block_k // 2 if pairs else t.block_k, triton.padded(most_k))
    return Tiling(q, k, t.warps, t.stages)


def _programs(impl: Triton, request: Request, rows: Lists) -> int:
    """Over how many programs the keys are split; 0 where there are queries enough."""
    z = request.shape
    few = z.T <= 16 and z.T * z.N // z.K <= 128
    alone = request.selection is not None or request.normalizer.stages
    if not few or alone or rows.bounds.shape[1] not in (1, z.K):
        return 0
    tiles = z.B * z.K * -(-z.S // (impl.block_k or 64))
    return 5 if impl.interpret else max(1, min(2 * launch.processors(), tiles))


def _lists(request: Request, t: Tiling) -> tuple[Lists, Lists]:
    """Keys for each block of queries, and the other way round."""
    z, size = request.shape, (t.block_q, t.block_k)
    if (blocks := request.selection) is not None:
        bq, bk = blocks.block_q, blocks.block_k
        cut = z.S % bk or z.T % bq or bk % size[1] or bq % size[0]
        whole = isinstance(request.mask, masks.Everything) and not cut
        kind = lists.FULL if whole else lists.PARTIAL
        chosen = blocks.indices, blocks.valid
        columns = -(-z.S // bk)
        return (
            lists.of_selection(*chosen, bk, size[1], kind),
            lists.of_selected(*chosen, columns, bq, size[0], kind),
        )
    by_row = request.mask.by_row
    at = (None, None) if by_row else (request.q_positions, request.k_positions)
    kinds = masks.tile_kinds_of_each(request.mask, z.T, z.S, *size, *at)
    kinds = lists.with_tails(kinds, z.T, z.S, *size)
    return lists.of_kinds(kinds, size[1]), lists.of_kinds(lists.transposed(kinds), size[0])


# ------------------------------------------------------------------------- forward and backward
#
# What a kernel gives is cast to vary over the mesh axes of its arguments (`pvary_like`): what
# shard_map takes for the same on all devices it would save for the backward pass from one.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, inputs: _Inputs) -> dict[str, Any]:
    return _forward(plan, inputs)[0]


def _statistics(plan: Plan, x: Arrays) -> tuple[Rows, tuple[Array, Rows, Rows] | None]:
    """Rows of statistics, and of the last stage (reference, sums, statistics before it)."""
    stats: Rows = ()
    last = None
    for number, stage in enumerate(plan.normalizer.stages):
        for _ in range(stage.repeat):
            got = pvary_like(triton.stage_sums(plan, number, x, stats), x)
            top = reference(got["m_out"])
            last = (top, got["sums_out"], stats)
            stats = _stage_finish(plan, number, last, x.params)
    return stats, last


def _stage_finish(plan: Plan, number: int, last: tuple[Array, Rows, Rows], params: Rows) -> Rows:
    wide = lambda x: x[..., None]
    m, sums, before = jax.tree.map(wide, last)
    stats = plan.normalizer.stages[number].finish(m, sums, before, params)
    return tuple(jnp.broadcast_to(s, m.shape)[..., 0] for s in stats)


def _forward(plan: Plan, inputs: _Inputs) -> tuple[dict[str, Any], Any]:
    # A bad query or key is NaN in the scores of exactly the pairs that see it, and zero elsewhere.
    poisoned = lambda x, bad: x + bad.astype(x.dtype)
    x = inputs.x._replace(
        q=poisoned(inputs.x.q, inputs.q_poison), k=poisoned(inputs.x.k, inputs.k_poison)
    )
    stats, last = _statistics(plan, x)
    got = pvary_like(triton.forward(plan, x, stats), x)
    result = {"out": got["out"], "m": got["m_out"], "sums": got["sums_out"]}
    return result, (inputs, stats, last, result)


def _backward(plan: Plan, residuals: Any, cotangents: dict[str, Any]) -> tuple[Any]:
    inputs, stats, last, result = residuals
    x = inputs.x._replace(of_rows=inputs.back_rows, of_columns=inputs.back_columns)
    r, dL, d_params = _division_back(plan, x, result, cotangents)
    c = Cotangents(cotangents["out"], r, dL, reference(result["m"]), stats, ((), (), ()))
    if last is not None:
        more, from_stage = _stage_back(plan, last, x, c)
        c = c._replace(more=more)
        d_params = _add(d_params, from_stage)
    dq, by_row = pvary_like(triton.rows_back(plan, x, c), x)
    dk, dv, by_column = pvary_like(triton.columns_back(plan, x, c), x)
    count = len(x.params)
    sums = zip(by_row[:count], x.params, strict=True)
    d_params = _add(d_params, tuple(_reduced(row[..., None], p.shape) for row, p in sums))
    d_operands = _operands_back(plan, x, c, by_row[count:], by_column)
    scaled = dq.astype(jnp.float32)
    d_scale = jnp.sum(scaled * x.q).reshape(1)
    dq, none = (scaled * x.scale).astype(dq.dtype), _NO_GRADIENT
    d_x = Arrays(dq, dk, dv, d_scale, d_operands, none, d_params, none, none, none, none)
    return (_Inputs(d_x, none, none, none, none),)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _division_back(
    plan: Plan, x: Arrays, result: dict[str, Any], cotangents: dict[str, Any]
) -> tuple[Array, Array, Rows]:
    """r, where results are values * r; the cotangent of the denominator; those of the parameters.

    r is one over the denominator; or one, where there is none and where sums are left as they are.
    """
    n, out = plan.normalizer, result["out"].astype(jnp.float32)
    m = reference(result["m"])
    no_params = jax.tree.map(jnp.zeros_like, x.params)
    bad = 0.0 * jnp.einsum("BTND->BNT", out)  # NaN for rows that saw one
    one = jnp.ones_like(m) + bad
    if n.denominator is None:
        return one, bad, no_params
    if plan.finish is None:
        return one, cotangents["sums"][0] + bad, no_params

    def denominator_of(sums: Rows, params: Rows) -> Array:
        extra = 0.0 if n.extra is None else n.extra(m[..., None], params)
        return (sums[0][..., None] + extra)[..., 0]

    denominator, pull = jax.vjp(denominator_of, result["sums"], x.params)
    r = divide(jnp.ones_like(denominator), denominator)
    g = cotangents["out"].astype(jnp.float32)
    dL = -r * jnp.einsum("BTND,BTND->BNT", g, out)
    return r, dL, _add(no_params, pull(dL)[1])


def _stage_back(
    plan: Plan, last: tuple[Array, Rows, Rows], x: Arrays, c: Cotangents
) -> tuple[tuple[Rows, Rows, Rows], Rows]:
    """What the terms of the last stage need of each row, and cotangents of the parameters."""
    m, sums, before = last
    d_stats = pvary_like(triton.statistics_back(plan, x, c), x)
    number = len(plan.normalizer.stages) - 1
    finish = lambda sums, params: _stage_finish(plan, number, (m, sums, before), params)
    d_sums, d_params = jax.vjp(finish, sums, x.params)[1](d_stats)
    return ((m,), before, d_sums), d_params


def _operands_back(
    plan: Plan, x: Arrays, c: Cotangents, by_row: Rows, by_column: Rows
) -> tuple[Array, ...]:
    """Cotangents of the mods' operands, of which kernels have summed those of rows and columns."""
    places = [place for function in plan.mods for place in function.operands]
    seen = {"row": 0, "column": 0, "pair": 0}  # operands of each kind so far
    grads = []
    for place, value in zip(places, x.operands, strict=True):
        number = seen[place.sums]
        seen[place.sums] += 1
        if place.sums == "row":
            grads.append(_reduced(by_row[number][..., None], value.shape))
        elif place.sums == "column":
            grads.append(_reduced(by_column[number][..., None, :], value.shape))
        else:
            grads.append(_pair_back(plan, number, place, value, x, c))
    return tuple(grads)


_NO_GRADIENT: Any = None


def _reduced(x: Array, shape: tuple[int, ...]) -> Array:
    """x summed over the axes along which an operand of this shape was broadcast."""
    axes = tuple(i for i, (a, b) in enumerate(zip(x.shape, shape, strict=True)) if b == 1 < a)
    return jnp.sum(x, axis=axes, keepdims=True) if axes else x


def _pair_back(
    plan: Plan, number: int, place: Operand, value: Array, x: Arrays, c: Cotangents
) -> Array:
    """The cotangent of operand `number` of pairs: an array, or a table of distances."""
    lead, positions = (value.shape[0], value.shape[1]), (x.q_positions, x.k_positions)
    if place.kind == "plain":
        return pvary_like(triton.pair_back(plan, number, lead, x, c), x)
    if place.kind == "table" and positions == (None, None):
        d_scores = pvary_like(triton.table_back(plan, number, lead, x, c), x)
        read = functools.partial(_read_by_diagonals, d_scores.shape[2:4], x.q.shape[1])
    else:
        d_scores = pvary_like(triton.pair_back(plan, number, lead, x, c), x)
        first = lambda p: None if p is None else p[0, 0]
        T, S = d_scores.shape[2:4]
        whole = Tile(span(0, T, first(positions[0])), span(0, S, first(positions[1])))
        read = lambda table: relative.look_up(place.kind, table, whole)
    return jax.linear_transpose(read, value)(d_scores)[0]


def _read_by_diagonals(shape: tuple[int, int], T: int, table: Array) -> Array:
    """A table's scores in a square tile of each of so many diagonals of tiles."""
    diagonals, size = shape

    def of_diagonal(table: Array, d: Array) -> Array:
        square = Tile(span(0, size, None), span(d * size, size, None))
        return relative.look_up("table", table, square)

    lowest = 1 - -(-T // size)
    return jax.vmap(of_diagonal, (None, 0), 2)(table, lowest + jnp.arange(diagonals))


_attend.defvjp(_forward, _backward)
