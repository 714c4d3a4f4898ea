"""Elementwise functions written in jnp, as Triton source.

`emit` traces a function with scalars and writes what the trace does, one line an operation: tiles
of any shapes that broadcast may take the scalars' place.  Triton itself is not needed for that.
Values are float32, int32 or bool; float16 and bfloat16 are held as float32 and rounded.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

HELPERS = '''\
@triton.jit
def _expm1(x):
    p = 1 / 720 + x * (1 / 5040 + x * (1 / 40320))
    p = 1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * p)))
    return tl.where(tl.abs(x) < 0.5, x * (1.0 + x * p), tl.exp(x) - 1.0)
@triton.jit
def _log1p(x):
    u = 1.0 + x  # what is lost here is made good by x / (u - 1)
    keep = (u == 1.0) | (x == float("inf"))
    return tl.where(keep, x, tl.log(u) * (x / (u - 1.0)))
@triton.jit
def _tanh(x):
    e = _expm1(-2.0 * tl.abs(x))
    t = -e / (2.0 + e)
    return tl.where(tl.abs(x) < 1e-4, x, tl.where(x < 0.0, -t, t))
@triton.jit
def _erfc(x):
    a = tl.abs(x)  # 1 - erf near 0, else exp(-x^2) p(1/x^2) / x as in Cephes
    q = 1.0 / a
    y = q * q
    p = y * (y * 0.02326819970068386 - 0.1387039388740657) + 0.3687424674597105
    p = y * (y * (y * p - 0.5824733027278666) + 0.6210004621745983) - 0.4944515323274145
    p = y * (y * (y * p + 0.3404879937665872) - 0.2741127028184656) + 0.5638259427386472
    r = y * (y * -10.47766399936249 + 12.97719955372516) - 7.495518717768503
    r = y * (y * (y * r + 2.921019019210786) - 1.015265279202700) + 0.4218463358204948
    r = y * (y * r - 0.2820767439740514) + 0.5641895067754075
    t = tl.exp(-a * a) * q * tl.where(a < 2.0, p, r)
    t = tl.where(a > 12.0, 0.0, t)
    return tl.where(a < 1.0, 1.0 - tl.erf(x), tl.where(x < 0.0, 2.0 - t, t))
@triton.jit
def _round(x, even: tl.constexpr):
    a = tl.abs(x)
    r = tl.floor(a)  # or, past 2^23 all floats are whole:
    r = (a + 8388608.0) - 8388608.0 if even else tl.where(a - r >= 0.5, r + 1.0, r)
    return tl.where((a < 8388608.0) & (x != 0.0), tl.where(x < 0.0, -r, r), x)

@triton.jit
def _whole(x):
    inside = tl.abs(x) < 2147483648.0  # else, as in XLA, saturated, and 0 for NaN
    far = tl.where(x > 0.0, 2147483647, tl.where(x < 0.0, -2147483648, 0))
    return tl.where(inside, tl.where(inside, x, 0.0).to(tl.int32), far)
@triton.jit
def _pow(x, y):
    """2^(y log2|x|) with log2 and the product in two floats each; IEEE's special cases."""
    a = tl.abs(x)
    small = a < 1.1754943508222875e-38
    bits = tl.where(small, a * 16777216.0, a).to(tl.int32, bitcast=True)
    e = (bits - 1060439283) >> 23  # the bits of sqrt(1/2), so that it is <= m < sqrt(2)
    m = (bits - (e << 23)).to(tl.float32, bitcast=True)
    n = e.to(tl.float32) - tl.where(small, 24.0, 0.0)
    log = tl.log2(m)
    s = n + log
    high = y * s
    low = tl.fma(y, s, -high) + y * (log - (s - n))
    p = tl.exp2(high)
    p = tl.where(tl.abs(high) < 128.0, p + p * (0.6931471805599453 * low), p)
    end = tl.where((y < 0.0) == (a == 0.0), float("inf"), 0.0)
    p = tl.where((a == 0.0) | (a == float("inf")), end, p)
    whole = tl.floor(y) == y
    p = tl.where((a == 1.0) & whole, 1.0, p)
    p = tl.where((x.to(tl.int32, bitcast=True) < 0) & whole & (tl.floor(y * 0.5) * 2.0 != y), -p, p)
    p = tl.where((x < 0.0) & (x > float("-inf")) & (tl.floor(y) != y), float("nan"), p)
    p = tl.where((x != x) | (y != y), x + y, p)
    return tl.where((x == 1.0) | (y == 0.0), 1.0, p)
'''
"""Functions that emitted ones call: to be appended once to a file that has any of these."""

_NAN = "propagate_nan=tl.PropagateNan.ALL"
_INFIX = {"add": "+", "add_any": "+", "sub": "-", "mul": "*", "rem": "%"}
_ORDER = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_BITS = {"and": "&", "or": "|", "xor": "^"}
_infix = lambda symbols: {name: f"{{0}} {symbol} {{1}}" for name, symbol in symbols.items()}
_calls = lambda prefix, names: {name: f"{prefix}{name}({{0}})" for name in names.split()}
_ANY = _infix(_INFIX | _ORDER) | {"neg": "-{0}", "square": "{0} * {0}", "abs": "tl.abs({0})"}

# By the kind of the first operand.
_TEMPLATES = {
    "float32": _ANY | _infix({"div": "/"}) | _calls("_", "expm1 log1p tanh erfc")
    | _calls("tl.", "exp exp2 log log2 rsqrt sin cos erf floor ceil") | {
        "max": f"tl.maximum({{0}}, {{1}}, {_NAN})", "min": f"tl.minimum({{0}}, {{1}}, {_NAN})",
        "clamp": f"tl.minimum(tl.maximum({{1}}, {{0}}, {_NAN}), {{2}}, {_NAN})",
        "sign": "tl.where({0} > 0.0, 1.0, tl.where({0} < 0.0, -1.0, {0}))",
        "is_finite": 'tl.abs({0}) < float("inf")', "one_minus_square": "(1.0 - {0}) * (1.0 + {0})",
        "logistic": "1.0 / (1.0 + tl.exp(-{0}))", "sqrt": "tl.sqrt_rn({0})",
    },
    # Division and remainder are C's, as lax's; shifts are by less than 32.
    "int32": _ANY | _infix(_BITS) | _infix({"div": "//"}) | {
        "max": "tl.maximum({0}, {1})", "min": "tl.minimum({0}, {1})", "not": "~{0}",
        "clamp": "tl.minimum(tl.maximum({1}, {0}), {2})",
        "sign": "tl.where({0} > 0, 1, tl.where({0} < 0, -1, 0))",
        "shift_left": "{0} << {1}", "shift_right_arithmetic": "{0} >> {1}",
    },
    "uint32": _infix(_BITS),  # held as int32
    # As a signed integer, True is -1: the order would be the other way round.
    "bool": _infix(_BITS) | {
        "not": "{0} == 0", "eq": "{0} == {1}", "ne": "{0} ^ {1}", "min": "{0} & {1}",
        "max": "{0} | {1}", "lt": "({0} == 0) & {1}", "le": "({0} == 0) | {1}",
        "gt": "{0} & ({1} == 0)", "ge": "{0} | ({1} == 0)",
    },
}  # fmt: skip
_SPECIAL = """bitcast_convert_type convert_element_type integer_pow polynomial pow round
    select_n""".split()
_SAME = """broadcast_in_dim copy copy_p device_put expand_dims mesh_cast name optimization_barrier
    pcast pvary reshape reshard sharding_constraint squeeze stop_gradient transpose""".split()
_CALLS = """checkpoint closed_call composite core_call custom_jvp_call custom_vjp_call
    custom_vjp_call_jaxpr jit pjit remat remat2""".split()


class NotElementwise(ValueError):
    """A function uses something that cannot become part of a kernel."""


def emit(name: str, fn: Callable[..., Any], *arguments: Any) -> str:
    """Source of a Triton function that computes fn, elementwise.

    arguments   for each parameter of fn its dtype, or a tuple of dtypes: the parameter is a tuple

    fn takes scalars and gives one, or a tuple of them, as the Triton function then does.  It may
    call functions of HELPERS.  Results that depend on no parameter have shape (1,1).  Raises
    NotElementwise, with the primitive and the line, for what is not elementwise or not known.
    """
    names, scalars = [], []
    scalar = lambda dtype: jax.ShapeDtypeStruct((), jnp.dtype(dtype))
    with jax.enable_x64(False):
        for i, each in enumerate(arguments):
            many = isinstance(each, tuple)
            names += [f"a{i}[{j}]" for j in range(len(each))] if many else [f"a{i}"]
            scalars.append(tuple(map(scalar, each)) if many else scalar(each))
        # Inside shard_map scalars have its mesh in their type: JAX would add "sums" over no axis.
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            closed, result = jax.make_jaxpr(fn, return_shape=True)(*scalars)
        several = isinstance(result, tuple | list)
        leaves = list(result) if several else [result]
        if not all(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
            raise ValueError(f"{name}: returns {result}, expected a scalar or a tuple of scalars")
        writer = _Writer(name)
        outputs = writer.run(closed.jaxpr, closed.consts, names, [True] * len(leaves), None)
    full = lambda x: f"tl.full([1, 1], {_spell(x)}, tl.{_kind(x.dtype).replace('bool', 'int1')})"
    spelled = [full(x) if isinstance(x, np.ndarray) else x for x in outputs]
    returned = f"({''.join(x + ', ' for x in spelled)})" if several else spelled[0]
    lines = [*writer.needed(spelled), f"return {returned}"]
    head = f"@triton.jit\ndef {name}({', '.join(f'a{i}' for i in range(len(arguments)))}):"
    return "\n    ".join([head, *lines]) + "\n"


class _Writer:
    """The lines of one function.  A value is an expression of it, or a constant as an array."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[str, tuple[str, Sequence[str]]] = {}  # expression -> name, operands

    def assign(self, template: str, *operands: str) -> str:
        """The name of an expression: the one it has, if it was written before."""
        line = f"v{len(self.lines)}", operands
        return self.lines.setdefault(template.format(*operands), line)[0]

    def needed(self, results: Sequence[str]) -> list[str]:
        """The lines that the results depend on."""
        wanted, kept = set(results), []
        for expression, (name, operands) in reversed(self.lines.items()):
            if name in wanted:
                wanted.update(operands)
                kept.append(f"{name} = {expression}")
        return kept[::-1]

    def run(self, jaxpr: Any, consts: Any, inputs: Any, used: list[bool], place: Any) -> list[Any]:
        """The outputs of a jaxpr that are used; place is the user's equation it is part of."""
        env = dict(zip(jaxpr.invars, inputs, strict=True))
        env |= zip(jaxpr.constvars, map(np.asarray, consts), strict=True)
        read = lambda x: np.asarray(x.val, x.aval.dtype) if isinstance(x, Literal) else env.get(x)
        variables = lambda atoms: {x for x in atoms if not isinstance(x, Literal)}
        live = variables(x for x, u in zip(jaxpr.outvars, used, strict=True) if u)
        for eqn in reversed(jaxpr.eqns):
            live |= set() if live.isdisjoint(eqn.outvars) else variables(eqn.invars)
        for eqn in (eqn for eqn in jaxpr.eqns if not live.isdisjoint(eqn.outvars)):
            wanted, values = [x in live for x in eqn.outvars], [*map(read, eqn.invars)]
            env.update(zip(eqn.outvars, self.equation(eqn, values, wanted, place), strict=True))
        return [*map(read, jaxpr.outvars)]

    def equation(self, eqn: Any, inputs: list[Any], used: list[bool], place: Any) -> list[Any]:
        primitive, params = eqn.primitive.name, eqn.params
        if primitive in _CALLS:
            body = next(params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in params)
            jaxpr, consts = getattr(body, "jaxpr", body), getattr(body, "consts", ())
            # A function of JAX's may have been traced for somebody else: its lines say nothing.
            of_jax = str(Path(jax.__file__).parent) in str(getattr(jaxpr, "debug_info", ""))
            return self.run(jaxpr, consts, inputs, used, (place or eqn) if of_jax else None)
        if all(isinstance(x, np.ndarray) for x in inputs):
            with jax.ensure_compile_time_eval():
                result = eqn.primitive.bind(*inputs, **params)
            return [*map(np.asarray, result if eqn.primitive.multiple_results else (result,))]
        avals = [x.aval for x in (*eqn.invars, *eqn.outvars)]
        kinds = [_kind(aval.dtype) if aval.size == 1 else "" for aval in avals]
        if not all(kinds):
            raise self.refused(eqn, place, avals[kinds.index("")].str_short())
        # An axis to sum over was made by the function, with one entry; a scalar has none.
        if primitive in _SAME or primitive.startswith("reduce_") and params.get("axes"):
            return inputs
        operands = [_spell(x) if isinstance(x, np.ndarray) else x for x in inputs]
        if primitive not in (*_SPECIAL, *_TEMPLATES[kinds[0]]):
            raise self.refused(eqn, place, kinds[0])
        if primitive in _SPECIAL:
            result = self.special(primitive, operands, inputs, kinds, params)
        else:
            result = self.assign(_TEMPLATES[kinds[0]][primitive], *operands)
        if avals[-1].dtype in (jnp.float16, jnp.bfloat16):
            result = self.assign(f"{{}}.to(tl.{avals[-1].dtype}).to(tl.float32)", result)
        return [result]

    def special(self, name: str, texts: list[str], inputs: Any, kinds: Any, params: Any) -> str:
        """Primitives that need more than a template, given operands as texts and as values."""
        match name:
            case "round":
                return self.assign(f"_round({{}}, {int(params['rounding_method']) == 1})", *texts)
            case "convert_element_type" if kinds[0] == kinds[1]:
                return texts[0]
            case "convert_element_type":
                to = "_whole({})" if kinds == ["float32", "int32"] else f"{{}}.to(tl.{kinds[1]})"
                return self.assign("{} != 0" if kinds[1] == "bool" else to, *texts)
            case "bitcast_convert_type":
                return self.assign(f"{{}}.to(tl.{kinds[1].lstrip('u')}, bitcast=True)", *texts)
            case "polynomial":
                add = lambda sum, c: self.assign("{} * {} + {}", sum, texts[0], c)
                return functools.reduce(add, texts[:0:-1])
            case "integer_pow":
                return self.power(texts[0], params["y"], kinds[0])
            case "pow":
                y = inputs[1].item() if isinstance(inputs[1], np.ndarray) else np.inf
                if abs(y) <= 16 and y == int(y):
                    return self.power(texts[0], int(y), kinds[0])
                tensor = "tl.where({0} == {0}, {1}, {1})"  # of a number, in the other's shape
                for i in (i for i in range(2) if isinstance(inputs[i], np.ndarray)):
                    texts[i] = self.assign(tensor, texts[1 - i], texts[i])
                return self.assign("_pow({}, {}.to(tl.float32))", *texts)
        which, *cases, result = texts
        if kinds[0] == "bool":
            return self.assign("tl.where({}, {}, {})", which, result, *cases)
        for i, case in reversed([*enumerate(cases)]):
            result = self.assign(f"tl.where({{}} <= {i}, {{}}, {{}})", which, case, result)
        return result

    def power(self, x: str, y: int, kind: str) -> str:
        """x^y by squaring."""
        if y < 0:
            return self.assign("1.0 / {}", self.power(x, -y, kind))
        if y < 2:
            return x if y else self.assign(f"tl.full([1, 1], 1, tl.{kind})")
        square = self.assign("{0} * {0}", self.power(x, y // 2, kind))
        return self.assign("{} * {}", square, x) if y % 2 else square

    def refused(self, eqn: Any, place: Any, dtype: str) -> NotElementwise:
        known = ", ".join(sorted({*_SPECIAL}.union(*_TEMPLATES.values())))
        return NotElementwise(
            f"{self.name}: {eqn.primitive.name} of {dtype} at {_line(place or eqn)} cannot become "
            f"part of a kernel, expected a function of float32, int32 or bool scalars of {known}"
        )


def _kind(dtype: Any) -> str:
    if jnp.issubdtype(dtype, jnp.floating):
        return "float32"
    name = jnp.dtype(dtype).name.replace("64", "32")
    return name if name in _TEMPLATES else ""


def _spell(x: np.ndarray) -> str:
    """A constant, as Python writes it."""
    value = x.astype(_kind(x.dtype).lstrip("u")).item()
    if not isinstance(value, float):
        return repr(value)
    # Triton takes what is no normal float32 for a float64: it is flushed, as XLA may do too.
    number = repr(0.0 * value if abs(value) < 2.0**-126 else value)
    return number if np.isfinite(value) else f'float("{number}")'


def _line(eqn: Any) -> str:
    """Where the user asked for an equation, file:line."""
    with contextlib.suppress(Exception):  # not public, so any release may have it elsewhere
        told = importlib.import_module("jax._src.source_info_util")
        return told.summarize(eqn.source_info)
    return "an unknown line"
