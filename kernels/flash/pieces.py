"""The holes of `body`, as text: what a call's mods, mask and normalizer put in their place."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from attnjax.kernels.emit import HELPERS, emit

FLOAT, INT = "float32", "int32"


@dataclass(frozen=True)
class Operand:
    """How a function's operand is found for a pair.

    kind    "plain": an array that broadcasts against (B,N,T,S)
            "table" (B|1,N|1,R), "query_table" (B|1,N|1,T,R), "key_table" (B|1,N|1,S,R): read at
            radius + clip(key position - query position), R = 2 radius + 1
            "cells" (B|1,N|1,rows,columns): read at positions divided by `cell`, kept inside
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str = FLOAT
    cell: tuple[int, int] = (1, 1)

    @property
    def sums(self) -> str:
        """Over what its cotangent is summed by a kernel: a "row", a "column", or nothing."""
        if self.kind != "plain":
            return "pair"
        return "row" if self.shape[3] == 1 else "column" if self.shape[2] == 1 else "pair"


@dataclass(frozen=True)
class Function:
    """An elementwise function: fn([score,] [q_position, k_position,] *operands)."""

    fn: Callable[..., Any]
    operands: tuple[Operand, ...]
    positions: bool


def _load(x: Operand, pointer: str) -> str:
    *lead, rows, columns = x.shape if x.kind != "table" else (*x.shape[:2], 1, x.shape[2])
    strides = (lead[1] * rows * columns, rows * columns, columns)
    wide = ".to(tl.int64)" if math.prod(x.shape) >= 2**31 else ""
    by = lambda place, stride: f" + at[{place}]{wide} * {stride}"
    where = [by(0, strides[0])] if lead[0] > 1 else []
    where += [by(1, strides[1])] if lead[1] > 1 else []
    if x.kind == "plain":
        where += [by(2, columns)] if rows > 1 else []
        where += [by(3, 1)] if columns > 1 else []
    elif x.kind == "cells":
        q, k = x.cell
        row = f"tl.minimum(tl.maximum(at[4] // {q}, 0), {rows - 1})"
        column = f"tl.minimum(tl.maximum(at[5] // {k}, 0), {columns - 1})"
        where += [f" + {row}{wide} * {columns} + {column}"]
    else:
        radius = (columns - 1) // 2
        if x.kind != "table":
            where += [by(2 if x.kind == "query_table" else 3, columns)]
        where += [f" + {radius} + tl.minimum(tl.maximum(at[5] - at[4], -{radius}), {radius})"]
    kind = {FLOAT: "tl.float32", INT: "tl.int32", "bool": "tl.int1"}[x.dtype]
    return f"tl.load({pointer}{''.join(where)}).to({kind})"


def _function(name: str, arguments: str, lines: Sequence[str]) -> str:
    return f"@triton.jit\ndef {name}({arguments}):\n    " + "\n    ".join(lines) + "\n\n"


def _tuple(items: Sequence[str]) -> str:
    return f"({', '.join(items)}{',' if items else ''})"


# ------------------------------------------------------------------------ scores and the mask


def _called(mod: Function, number: int, first: int) -> tuple[list[str], str]:
    """Lines that load a mod's operands, and the arguments that follow the score."""
    names = [f"x{first + i}" for i in range(len(mod.operands))]
    lines = [
        f"{name} = {_load(x, f'xs[{first + i}]')}"
        for i, (name, x) in enumerate(zip(names, mod.operands, strict=True))
    ]
    given = (["at[4]", "at[5]"] if mod.positions else []) + names
    return lines, ", ".join([f"s{number}", *given])


def score(mods: Sequence[Function]) -> str:
    """`score`, of mods in order."""
    text, lines, first = "", ["s0 = s"], 0
    for i, mod in enumerate(mods):
        dtypes = [INT, INT] * mod.positions + [x.dtype for x in mod.operands]
        text += emit(f"mod{i}", mod.fn, FLOAT, *dtypes) + "\n\n"
        loads, arguments = _called(mod, i, first)
        lines += [*loads, f"s{i + 1} = mod{i}({arguments})"]
        first += len(mod.operands)
    return text + _function("score", "s, at, xs", [*lines, f"return s{len(mods)}"])


def score_back(mods: Sequence[Function]) -> str:
    """`score_back`: the mods again, then their derivatives in reverse."""
    text, lines, back = "", ["s0 = s"], []
    first, found = 0, {"row": [], "column": [], "pair": []}
    for i, mod in enumerate(mods):
        places = [INT, INT] * mod.positions
        skip = len(places)

        def pull(s: Any, *rest: Any, fn: Any = mod.fn, skip: int = skip) -> tuple[Any, ...]:
            fixed, xs, d = rest[:skip], rest[skip:-1], rest[-1]
            return jax.vjp(lambda s, *xs: fn(s, *fixed, *xs), s, *xs)[1](d)

        dtypes = [x.dtype for x in mod.operands]
        text += emit(f"mod{i}_back", pull, FLOAT, *places, *dtypes, FLOAT) + "\n\n"
        loads, arguments = _called(mod, i, first)
        lines += loads
        if i + 1 < len(mods):
            lines.append(f"s{i + 1} = mod{i}({arguments})")
        after = "d" if i + 1 == len(mods) else f"r{i + 1}[0]"
        back.append(f"r{i} = mod{i}_back({arguments}, {after})")
        for number, x in enumerate(mod.operands):
            found[x.sums].append(f"r{i}[{number + 1}]")
        first += len(mod.operands)
    result = "r0[0]" if mods else "d"
    sums = ", ".join(_tuple(found[kind]) for kind in ("row", "column", "pair"))
    return text + _function(
        "score_back", "s, d, at, xs", [*lines, *back[::-1], f"return {result}, {sums}"]
    )


def allowed(mask: Function | None) -> str:
    """`allowed`, of positions and of what rides with them."""
    if mask is None:
        return _function("allowed", "at, ms", ["return at[2] + at[3] >= 0"])
    dtypes = [x.dtype for x in mask.operands]
    text = emit("mask", mask.fn, INT, INT, *dtypes) + "\n\n"
    loads = [f"x{i} = {_load(x, f'ms[{i}]')}" for i, x in enumerate(mask.operands)]
    arguments = ", ".join(["at[4]", "at[5]", *(f"x{i}" for i in range(len(loads)))])
    return text + _function("allowed", "at, ms", [*loads, f"return mask({arguments})"])


# ------------------------------------------------------------------------------ the normalizer


def params(shapes: Sequence[tuple[int, ...]]) -> str:
    """`params`, from arrays (B|1,N|1,1,1)."""
    loads = [_load(Operand("plain", shape), f"ps[{i}]") for i, shape in enumerate(shapes)]
    return _function("params", "b, n, ps", ["at = (b, n)", f"return {_tuple(loads)}"])


def reference(n: Any, peak: Any, rescale: Any, count: int, floored: bool) -> str:
    """`start`, `peak` and `rescale`."""
    text = "" if peak is None else emit("peak", peak, FLOAT) + "\n\n"
    text += emit("rescale", rescale, FLOAT, FLOAT) + "\n\n"
    if not floored or n.floor is None:
        return text + _function("start", "p, empty", ["return empty"])
    text += emit("floor", n.floor, (FLOAT,) * count) + "\n\n"
    return text + _function("start", "p, empty", ["return tl.maximum(empty, floor(p))"])


def terms(fn: Callable[..., Sequence[Any]], stats: int, count: int, weighs: bool) -> str:
    """`terms` and the sums of them."""
    rows = (FLOAT,) * stats, (FLOAT,) * count
    number = len(jax.eval_shape(fn, *scalars(FLOAT, FLOAT, *rows)))
    text = emit("terms", fn, FLOAT, FLOAT, *rows) + "\n\n"
    summed = range(1 if weighs else 0, number)
    each = lambda spell: _tuple([spell(i, term) for i, term in enumerate(summed)])
    add = lambda i, term: (
        f"sums[{i}] * fade + tl.sum(tl.broadcast_to(new[{term}], (BM, BN)), 1)[:, None]"
    )  # noqa: E501
    merge = lambda i, term: f"a[{i}] * fade_a + b[{i}] * fade_b"
    text += _function("no_sums", "empty", [f"return {each(lambda i, term: 'empty')}"])
    text += _function("add_terms", "sums, new, fade", [f"return {each(add)}"])
    text += _function("merge_sums", "a, b, fade_a, fade_b", [f"return {each(merge)}"])
    kept = _tuple([f"tl.where(ok, new[{i}], 0.0)" for i in range(number)])
    text += _function("keep", "ok, new", [f"return {kept}"])
    stores = [
        f"tl.store(pointers[{i}] + where, values[{i}], mask=inside)" for i in range(len(summed))
    ]  # noqa: E501
    return text + _function("store_rows", "pointers, values, where, inside", stores or ["pass"])


def finish(fn: Callable[..., Any] | None, sums: int, count: int) -> str:
    """`finish`; None leaves the weighted values as they are."""
    if fn is None:
        return _function("finish", "values, sums, m, p", ["return values"])
    return emit("finish", fn, FLOAT, (FLOAT,) * sums, FLOAT, (FLOAT,) * count) + "\n\n"


def rows(name: str, count: int) -> str:
    """`load_rows` or `load_more`."""
    loads = _tuple([f"tl.load(pointers[{i}] + where)" for i in range(count)])
    return _function(name, "pointers, where", [f"return {loads}"])


def terms_back(fn: Callable[..., Any], stats: int, more: int, count: int) -> str:
    """`terms_back` of fn(s, m, stats, params, more, df, dL) -> (weight, ds, (cotangents...))."""
    tuples = (FLOAT,) * stats, (FLOAT,) * count, (FLOAT,) * more
    flat = lambda *given: (lambda w, ds, rest: (w, ds, *rest))(*fn(*given))
    text = emit("terms_back_flat", flat, FLOAT, FLOAT, *tuples, FLOAT, FLOAT) + "\n\n"
    number = len(jax.eval_shape(flat, *scalars(FLOAT, FLOAT, *tuples, FLOAT, FLOAT))) - 2
    rest = _tuple([f"all[{i + 2}]" for i in range(number)])
    return text + _function(
        "terms_back", "s, m, stats, p, more, df, dL",
        ["all = terms_back_flat(s, m, stats, p, more, df, dL)", f"return all[0], all[1], {rest}"],
    )  # fmt: skip


def gradients(by_terms: int, by_score: int, shape: str) -> str:
    """The sums over the second axis of tiles, whose shape this names."""
    names = [f"by_terms[{i}]" for i in range(by_terms)]
    names += [f"by_score[{i}]" for i in range(by_score)]
    add = lambda i, x: (
        f"sums[{i}] + tl.sum(tl.where(ok, tl.broadcast_to({x}, {shape}), 0.0), 1)[:, None]"
    )
    stores = [
        f"tl.store(pointers[{i}] + where, values[{i}], mask=inside)" for i in range(len(names))
    ]  # noqa: E501
    added = _tuple([add(i, x) for i, x in enumerate(names)])
    text = _function("no_gradients", "empty", [f"return {_tuple(['empty'] * len(names))}"])
    text += _function("add_gradients", "sums, by_terms, by_score, ok", [f"return {added}"])
    return text + _function(
        "store_gradients", "pointers, values, where, inside", stores or ["pass"]
    )


def pair(number: int) -> str:
    """`pair_gradient`: which of the operands of pairs."""
    return _function("pair_gradient", "by_pair", [f"return by_pair[{number}]"])


def letters(**values: Any) -> str:
    """The letters of `body`, and the helpers of emitted functions."""
    return "\n".join(f"{k} = constant({v!r})" for k, v in values.items()) + f"\n\n{HELPERS}\n\n"


def scalars(*dtypes: Any) -> tuple[Any, ...]:
    """What stands for arguments when a function is traced: dtypes, or tuples of them."""
    make = lambda d: jax.ShapeDtypeStruct((), jnp.dtype(d))
    return tuple(tuple(map(make, d)) if isinstance(d, tuple) else make(d) for d in dtypes)
