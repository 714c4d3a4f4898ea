"""The holes of `body`, as text: what a call's mods, mask and normalizer put in their place."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

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


# What Triton functions are made of.  `at` is the pair that a function is asked about: at[0] batch,
# at[1] head, at[2] and at[3] query and key (rows and columns), at[4] and at[5] their positions.


def _define(name: str, arguments: str, lines: Sequence[str], result: str | None) -> str:
    """A function of these lines, which returns the result if there is one."""
    last = [] if result is None else [f"return {result}"]
    body = "".join(f"    {line}\n" for line in [*lines, *last] or ["pass"])
    return f"@triton.jit\ndef {name}({arguments}):\n{body}\n"


def _tuple_of(items: Sequence[str]) -> str:
    return f"({', '.join(items)}{',' if items else ''})"


def _store_all(name: str, count: int) -> str:
    """A function that stores so many values, each at a pointer of its own."""
    stores = [f"tl.store(pointers[{i}] + where, values[{i}], mask=inside)" for i in range(count)]
    return _define(name, "pointers, values, where, inside", stores, None)


_TYPES = {FLOAT: "tl.float32", INT: "tl.int32", "bool": "tl.int1"}


def _load(x: Operand, pointer: str) -> str:
    """The expression that loads an operand's element for the pair `at`."""
    *lead, rows, columns = x.shape if x.kind != "table" else (*x.shape[:2], 1, x.shape[2])
    wide = ".to(tl.int64)" if math.prod(x.shape) >= 2**31 else ""
    steps = [f"at[0]{wide} * {lead[1] * rows * columns}"] if lead[0] > 1 else []
    steps += [f"at[1]{wide} * {rows * columns}"] if lead[1] > 1 else []
    if x.kind == "plain":
        steps += [f"at[2]{wide} * {columns}"] if rows > 1 else []
        steps += [f"at[3]{wide} * 1"] if columns > 1 else []
    elif x.kind == "cells":
        row = _clip(f"at[4] // {x.cell[0]}", "0", rows - 1)
        column = _clip(f"at[5] // {x.cell[1]}", "0", columns - 1)
        steps += [f"{row}{wide} * {columns}", column]
    else:
        radius = (columns - 1) // 2
        row = {"query_table": "at[2]", "key_table": "at[3]"}.get(x.kind)
        steps += [] if row is None else [f"{row}{wide} * {columns}"]
        steps += [f"{radius}", _clip("at[5] - at[4]", f"-{radius}", radius)]
    return f"tl.load({' + '.join([pointer, *steps])}).to({_TYPES[x.dtype]})"


def _clip(x: str, low: str, high: int) -> str:
    return f"tl.minimum(tl.maximum({x}, {low}), {high})"


# ------------------------------------------------------------------------ scores and the mask


class _Call(NamedTuple):
    """How a generated function calls an emitted one: lines before the call, and its arguments."""

    loads: list[str]
    arguments: list[str]  # positions, operands


def _call(function: Function, pointers: str, first: int = 0) -> _Call:
    """Operands are those of `pointers` from number `first` on."""
    names = [f"x{first + i}" for i in range(len(function.operands))]
    loads = [
        f"{name} = {_load(x, f'{pointers}[{first + i}]')}"
        for i, (name, x) in enumerate(zip(names, function.operands, strict=True))
    ]
    positions = ["at[4]", "at[5]"] if function.positions else []
    return _Call(loads, [*positions, *names])


def _calls(mods: Sequence[Function]) -> list[_Call]:
    calls, first = [], 0
    for mod in mods:
        calls.append(_call(mod, "xs", first))
        first += len(mod.operands)
    return calls


def score(mods: Sequence[Function]) -> str:
    """`score`, of mods in order:

    def score(s, at, xs):
        x0 = tl.load(xs[0] + ...)
        s = mod0(s, x0)
        ...
        return s
    """
    text, lines = "", []
    for i, (mod, call) in enumerate(zip(mods, _calls(mods), strict=True)):
        dtypes = [INT, INT] * mod.positions + [x.dtype for x in mod.operands]
        text += emit(f"mod{i}", mod.fn, FLOAT, *dtypes) + "\n\n"
        lines += [*call.loads, f"s = mod{i}({', '.join(['s', *call.arguments])})"]
    return text + _define("score", "s, at, xs", lines, "s")


def score_back(mods: Sequence[Function]) -> str:
    """`score_back`: the mods again, then their derivatives in reverse:

    def score_back(s, d, at, xs):
        s0 = s
        x0 = tl.load(xs[0] + ...)
        s1 = mod0(s0, x0)
        r1 = mod1_back(s1, d)              cotangents of the score, and of each operand
        r0 = mod0_back(s0, x0, r1[0])
        return r0[0], (), (r0[1],), ()     those of operands by how a kernel sums them
    """
    text, forward, back = "", ["s0 = s"], []
    sums: dict[str, list[str]] = {"row": [], "column": [], "pair": []}
    for i, (mod, call) in enumerate(zip(mods, _calls(mods), strict=True)):
        text += _emit_derivative(f"mod{i}_back", mod) + "\n\n"
        last = i + 1 == len(mods)
        arguments = ", ".join([f"s{i}", *call.arguments])
        forward += call.loads
        forward += [] if last else [f"s{i + 1} = mod{i}({arguments})"]
        back.append(f"r{i} = mod{i}_back({arguments}, {'d' if last else f'r{i + 1}[0]'})")
        for number, x in enumerate(mod.operands):
            sums[x.sums].append(f"r{i}[{number + 1}]")
    cotangent = "r0[0]" if mods else "d"
    result = ", ".join([cotangent, *map(_tuple_of, sums.values())])
    return text + _define("score_back", "s, d, at, xs", [*forward, *back[::-1]], result)


def _emit_derivative(name: str, mod: Function) -> str:
    """(score, [positions,] *operands, cotangent) -> cotangents of the score and the operands."""
    positions = [INT, INT] * mod.positions
    count = len(positions)

    def pull(s: Any, *rest: Any) -> tuple[Any, ...]:
        fixed, operands, d = rest[:count], rest[count:-1], rest[-1]
        return jax.vjp(lambda s, *xs: mod.fn(s, *fixed, *xs), s, *operands)[1](d)

    return emit(name, pull, FLOAT, *positions, *(x.dtype for x in mod.operands), FLOAT)


def allowed(mask: Function | None) -> str:
    """`allowed`, of positions and the mask's operands."""
    if mask is None:
        return _define("allowed", "at, ms", [], "at[2] + at[3] >= 0")
    text = emit("mask", mask.fn, INT, INT, *(x.dtype for x in mask.operands)) + "\n\n"
    call = _call(replace(mask, positions=True), "ms")
    return text + _define("allowed", "at, ms", call.loads, f"mask({', '.join(call.arguments)})")


# ------------------------------------------------------------------------------ the normalizer


def params(shapes: Sequence[tuple[int, ...]]) -> str:
    """`params`, from arrays (B|1,N|1,1,1)."""
    loads = [_load(Operand("plain", shape), f"ps[{i}]") for i, shape in enumerate(shapes)]
    return _define("params", "b, n, ps", ["at = (b, n)"], _tuple_of(loads))


def reference(n: Any, peak: Any, rescale: Any, count: int, floored: bool) -> str:
    """`start`, `peak` and `rescale`."""
    text = "" if peak is None else emit("peak", peak, FLOAT) + "\n\n"
    text += emit("rescale", rescale, FLOAT, FLOAT) + "\n\n"
    if not floored or n.floor is None:
        return text + _define("start", "p, empty", [], "empty")
    text += emit("floor", n.floor, (FLOAT,) * count) + "\n\n"
    return text + _define("start", "p, empty", [], "tl.maximum(empty, floor(p))")


def _sum_of_row(x: str, shape: str) -> str:
    return f"tl.sum(tl.broadcast_to({x}, {shape}), 1)[:, None]"


def terms(fn: Callable[..., Sequence[Any]], stats: int, count: int, weighs: bool) -> str:
    """`terms` and the sums of them; with `weighs`, the first weighs values and is not summed."""
    rows = (FLOAT,) * stats, (FLOAT,) * count
    number = len(jax.eval_shape(fn, *scalars(FLOAT, FLOAT, *rows)))
    summed = list(enumerate(range(1 if weighs else 0, number)))
    zeros = ["empty" for _ in summed]
    added = [
        f"sums[{i}] * rescaled + {_sum_of_row(f'new[{term}]', '(BM, BN)')}" for i, term in summed
    ]
    merged = [f"a[{i}] * rescaled_a + b[{i}] * rescaled_b" for i, _ in summed]
    masked = [f"tl.where(ok, new[{i}], 0.0)" for i in range(number)]
    return (
        emit("terms", fn, FLOAT, FLOAT, *rows)
        + "\n\n"
        + _define("no_sums", "empty", [], _tuple_of(zeros))
        + _define("add_terms", "sums, new, rescaled", [], _tuple_of(added))
        + _define("merge_sums", "a, b, rescaled_a, rescaled_b", [], _tuple_of(merged))
        + _define("zero_masked", "ok, new", [], _tuple_of(masked))
        + _store_all("store_rows", len(summed))
    )


def finish(fn: Callable[..., Any] | None, sums: int, count: int) -> str:
    """`finish`; None leaves the weighted values as they are."""
    if fn is None:
        return _define("finish", "values, sums, m, p", [], "values")
    return emit("finish", fn, FLOAT, (FLOAT,) * sums, FLOAT, (FLOAT,) * count) + "\n\n"


def rows(name: str, count: int) -> str:
    """`load_rows` or `load_more`."""
    loads = [f"tl.load(pointers[{i}] + where)" for i in range(count)]
    return _define(name, "pointers, where", [], _tuple_of(loads))


def terms_back(fn: Callable[..., Any], stats: int, more: int, count: int) -> str:
    """`terms_back` of fn(s, m, stats, params, more, df, dL) -> (weight, ds, (cotangents...))."""
    tuples = (FLOAT,) * stats, (FLOAT,) * count, (FLOAT,) * more

    def flat(*arguments: Any) -> tuple[Any, ...]:
        weight, ds, cotangents = fn(*arguments)
        return weight, ds, *cotangents

    text = emit("terms_back_flat", flat, FLOAT, FLOAT, *tuples, FLOAT, FLOAT) + "\n\n"
    number = len(jax.eval_shape(flat, *scalars(FLOAT, FLOAT, *tuples, FLOAT, FLOAT))) - 2
    cotangents = _tuple_of([f"all[{i + 2}]" for i in range(number)])
    arguments = "s, m, stats, p, more, df, dL"
    lines = [f"all = terms_back_flat({arguments})"]
    return text + _define("terms_back", arguments, lines, f"all[0], all[1], {cotangents}")


def gradients(by_terms: int, by_score: int, shape: str) -> str:
    """The sums over the second axis of tiles, whose shape this names."""
    names = [f"by_terms[{i}]" for i in range(by_terms)]
    names += [f"by_score[{i}]" for i in range(by_score)]
    added = [
        f"sums[{i}] + tl.sum(tl.where(ok, tl.broadcast_to({x}, {shape}), 0.0), 1)[:, None]"
        for i, x in enumerate(names)
    ]
    zeros = ["empty" for _ in names]
    return (
        _define("no_gradients", "empty", [], _tuple_of(zeros))
        + _define("add_gradients", "sums, by_terms, by_score, ok", [], _tuple_of(added))
        + _store_all("store_gradients", len(names))
    )


def pair(number: int) -> str:
    """`pair_gradient`: which of the operands of pairs."""
    return _define("pair_gradient", "by_pair", [], f"by_pair[{number}]")


def letters(**values: Any) -> str:
    """The letters of `body`, and the helpers of emitted functions."""
    return "\n".join(f"{k} = constant({v!r})" for k, v in values.items()) + f"\n\n{HELPERS}\n\n"


def scalars(*dtypes: Any) -> tuple[Any, ...]:
    """What stands for arguments when a function is traced: dtypes, or tuples of them."""
    make = lambda d: jax.ShapeDtypeStruct((), jnp.dtype(d))
    return tuple(tuple(map(make, d)) if isinstance(d, tuple) else make(d) for d in dtypes)
