"""Every derivative of an op from its value and its gradient.

An op that computes its gradient itself, by tiles or by a kernel, is given as two functions:

    forward(x, rest) -> (out, saved)            rest: what no derivative is taken by
    backward(x, rest, saved, cotangent) -> the cotangent of x, a tree like x

and this module binds it as JAX primitives that know each other's derivatives and transposes;
f is the op, u and w for tangents of x, c for a cotangent of out:

    value       f(x)                            derivative: tangent
    tangent     Df(x) u                         linear in u, transposed: gradient
    gradient    Df(x)^T c                       linear in c, transposed: tangent
    second      D^2 f(x)[u, w]                  linear in each, transposed: hessian
    hessian     D (Df(x)^T c) w                 linear in w and symmetric; in c, transposed: second

So forward mode, reverse mode, and either over either work, under jit, vmap, remat, scan and
shard_map; whatever is beyond runs in forward mode.  `tangent` is the forward pass in forward mode,
`hessian` the backward pass in forward mode, recomputed from x: loops whose number of rounds is
known only when they run have both, and no reverse mode.

    again(x, rest, saved) -> out       the forward pass that knows `saved`, for `tangent`: cheaper
    like(x, rest) -> out               where a pass is a kernel, which has no forward mode either:
                                       a function that JAX can differentiate stands in for both
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Tree = Any
Flat = tuple[Any, ...]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Static:
    """What is static, as a part of `rest`."""

    value: Any


class _Known:
    """An array whose numbers belong to a program."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.hash = hash((array.shape, array.dtype.str, array.tobytes()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Known) or self.array.dtype != other.array.dtype:
            return False
        return np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return self.hash


def _kept_known(x: Any) -> Any:
    return Static(_Known(x)) if isinstance(x, np.ndarray) else x


def _with_known(rest: Tree) -> Tree:
    is_known = lambda x: isinstance(x, Static) and isinstance(x.value, _Known)
    return jax.tree.map(lambda x: x.value.array if is_known(x) else x, rest, is_leaf=is_known)


@dataclass(frozen=True)
class Derived:
    """The op itself: call it with (x, rest).  Functions are of a module, and close over nothing."""

    forward: Callable[[Tree, Tree], tuple[Tree, Tree]]
    backward: Callable[[Tree, Tree, Tree, Tree], Tree]
    again: Callable[[Tree, Tree, Tree], Tree] | None = None
    like: Callable[[Tree, Tree], Tree] | None = None

    def __call__(self, x: Tree, rest: Tree) -> Tree:
        """f(x).  Arrays of NumPy in `rest` stay known to the functions."""
        x, x_tree = jax.tree.flatten(x)
        rest, rest_tree = jax.tree.flatten(jax.tree.map(_kept_known, rest))
        given = _Parts(x=tuple(x), rest=tuple(rest))
        call = _Call("value", self, (x_tree, rest_tree))
        tree = jax.tree.structure(_traced(call, _types(given)).out_info)
        out, _ = jax.tree.unflatten(tree, _bind(call, given))
        return out

    def out(self, x: Tree, rest: Tree) -> Tree:
        """f(x), of which JAX can take a derivative in forward mode."""
        return self.forward(x, rest)[0] if self.like is None else self.like(x, rest)

    def pull(self, x: Tree, rest: Tree, cotangent: Tree) -> Tree:
        """Df(x)^T c, of which JAX can take a derivative in forward mode."""
        if self.like is None:
            return self.backward(x, rest, self.forward(x, rest)[1], cotangent)
        return jax.vjp(lambda x: self.out(x, rest), x)[1](cotangent)[0]


def in_reverse(fn: Callable[[Tree, Tree], Tree], like: Callable[[Tree, Tree], Tree]) -> Derived:
    """fn(x, rest), of which JAX has reverse mode alone; all else is taken of `like`, its equal."""
    return Derived(_Kept(fn), _pulled, like=like)


@dataclass(frozen=True)
class _Kept:
    """A function that gives its pullback, too."""

    fn: Callable[[Tree, Tree], Tree]

    def __call__(self, x: Tree, rest: Tree) -> tuple[Tree, Tree]:
        return jax.vjp(lambda x: self.fn(x, rest), x)

    @property
    def __name__(self) -> str:
        return self.fn.__name__


def _pulled(x: Tree, rest: Tree, saved: Tree, cotangent: Tree) -> Tree:
    return saved(cotangent)[0]


# ------------------------------------------------------------------------------- what is bound


class _Parts(NamedTuple):
    """The arrays of a call, or something of each: those that a call has none of are empty."""

    x: Flat
    rest: Flat
    saved: Flat = ()
    u: Flat = ()  # tangents of the leaves `wrt` of x
    w: Flat = ()  # tangents of the leaves `also` of x
    c: Flat = ()  # cotangents of out

    def flat(self) -> Flat:
        return sum(self, ())

    def filled(self, values: Sequence[Any]) -> "_Parts":
        """The same parts with other values."""
        values = list(values)
        return _Parts(*(tuple(values.pop(0) for _ in part) for part in self))


@dataclass(frozen=True)
class _Call:
    """What is static about a primitive: which function of which op, of which leaves, mapped how.

    layers   one for each vmap around it, the innermost first: which arrays it maps, all along
             their first axis.  Results are mapped by all
    """

    kind: str
    op: Derived
    trees: tuple[Any, Any]  # of x and of rest
    wrt: tuple[int, ...] = ()
    also: tuple[int, ...] = ()
    out: Any = None  # tree of the result
    saved: Any = None
    layers: tuple[_Parts, ...] = ()

    def turned(self, kind: str, layers: tuple[_Parts, ...], **changes: Any) -> "_Call":
        """Another function of the same op."""
        return replace(self, kind=kind, layers=layers, **changes)


def _replaced(x: Flat, at: tuple[int, ...], by: Flat) -> Flat:
    new = dict(zip(at, by, strict=True))
    return tuple(new.get(i, leaf) for i, leaf in enumerate(x))


def _chosen(x: Sequence[Any], at: tuple[int, ...]) -> Flat:
    return tuple(x[i] for i in at)


def _evaluate(call: _Call, given: _Parts) -> Any:
    """The function itself, of arrays that no vmap maps."""
    x_tree, rest_tree = call.trees
    op, rest = call.op, _with_known(jax.tree.unflatten(rest_tree, given.rest))
    tree = lambda x: jax.tree.unflatten(x_tree, x)
    cotangent = lambda: jax.tree.unflatten(call.out, given.c)
    saved = lambda: jax.tree.unflatten(call.saved, given.saved)
    wanted = lambda dx: _chosen(jax.tree.leaves(dx), call.wrt)

    def tangent(x: Flat, out: Callable[[Tree, Tree], Tree] = op.out) -> Flat:
        along = lambda *moving: out(tree(_replaced(x, call.wrt, moving)), rest)
        return tuple(jax.tree.leaves(jax.jvp(along, _chosen(x, call.wrt), given.u)[1]))

    def gradient(x: Flat) -> Flat:
        return wanted(op.pull(tree(x), rest, cotangent()))

    def derivative(function: Callable[[Flat], Flat]) -> Flat:
        along = lambda *moving: function(_replaced(given.x, call.also, moving))
        return jax.jvp(along, _chosen(given.x, call.also), given.w)[1]

    match call.kind:
        case "value":
            return op.forward(tree(given.x), rest)
        case "tangent":
            again, known = op.again, saved()
            if again is None:
                return tangent(given.x)
            return tangent(given.x, lambda x, rest: again(x, rest, known))
        case "gradient":
            return wanted(op.backward(tree(given.x), rest, saved(), cotangent()))
        case "second":
            return derivative(tangent)
        case _:
            return derivative(gradient)


@functools.lru_cache(maxsize=4096)
def _function(call: _Call, empty: _Parts) -> Any:
    """The function of the flat arrays, under its vmaps, compiled; `empty` has the right lengths."""

    def function(*arrays: Any) -> Any:
        return _evaluate(call, empty.filled(arrays))

    function.__name__ = f"{call.op.forward.__name__}_{call.kind}"
    for layer in call.layers:
        axes = tuple(0 if mapped else None for mapped in layer.flat())
        function = jax.vmap(function, axes)
    return jax.jit(function)


def _compiled(call: _Call, given: _Parts) -> Any:
    return _function(call, given.filled([None] * len(given.flat())))


def _types(given: _Parts) -> _Parts:
    return given.filled([jax.typeof(x) for x in given.flat()])


def _traced(call: _Call, types: _Parts) -> Any:
    """The function, traced for arrays of these types; once for each."""
    return _compiled(call, types).trace(*types.flat())


def _bind(call: _Call, given: _Parts) -> list[Any]:
    """`jaxpr` is for JAX, which asks before it compiles what a program is made of: on which devices
    something in it runs, say."""
    lengths, program = tuple(map(len, given)), _traced(call, _types(given)).jaxpr
    return _PRIMITIVE.bind(*given.flat(), call=call, lengths=lengths, jaxpr=program)


def _parts(arrays: Sequence[Any], lengths: tuple[int, ...]) -> _Parts:
    return _Parts(*((None,) * n for n in lengths)).filled(arrays)


# ----------------------------------------------------------------------------- its derivatives


def _is_zero(x: Any) -> bool:
    return isinstance(x, ad.Zero)


def _instantiated(x: Any) -> Any:
    return ad.instantiate_zeros(x)


def _zero_of(x: Any) -> Any:
    return ad.Zero(jax.typeof(x).to_tangent_aval())


def _added(a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    return [ad.add_tangents(x, y) for x, y in zip(a, b, strict=True)]


def _moving(tangents: Sequence[Any]) -> tuple[int, ...]:
    """Which leaves have a tangent that is not zero."""
    return tuple(
        i for i, t in enumerate(tangents) if not _is_zero(t) and t.dtype != jax.dtypes.float0
    )


def _jvp(
    arrays: Sequence[Any], tangents: Sequence[Any], *, call: _Call, lengths: Any, **_: Any
) -> Any:
    given, d = _parts(arrays, lengths), _parts(tangents, lengths)
    out = _bind(call, given)
    rule = {"value": _value_jvp, "tangent": _tangent_jvp, "gradient": _gradient_jvp}
    return out, rule.get(call.kind, _last_jvp)(call, given, d, out)


def _value_jvp(call: _Call, given: _Parts, d: _Parts, results: list[Any]) -> list[Any]:
    """`saved` is no result but a part of x computed before: its derivative is that of x."""
    traced = _traced(call.turned("value", ()), _inner(call, given))
    out_tree, saved_tree = jax.tree.structure(traced.out_info).children()
    out, saved = results[: out_tree.num_leaves], tuple(results[out_tree.num_leaves :])
    zeros = [_zero_of(x) for x in saved]
    wrt = _moving(d.x)
    if not wrt:
        return [_zero_of(x) for x in out] + zeros
    u, mapped = _chosen(d.x, wrt), (True,) * len(saved)
    layers = tuple(L._replace(saved=mapped, u=_chosen(L.x, wrt)) for L in call.layers)
    along = call.turned("tangent", layers, wrt=wrt, out=out_tree, saved=saved_tree)
    return _bind(along, given._replace(saved=saved, u=u)) + zeros


def _inner(call: _Call, given: _Parts) -> _Parts:
    """The types of the arrays without the axes of the vmaps around the call."""
    types = list(_types(given).flat())
    for layer in reversed(call.layers):
        pairs = zip(types, layer.flat(), strict=True)
        types = [_without_first(t) if mapped else t for t, mapped in pairs]
    return given.filled(types)


def _without_first(t: Any) -> Any:
    return t.update(shape=t.shape[1:])


def _along_x(call: _Call, given: _Parts, d: _Parts, kind: str) -> list[Any] | None:
    """What the tangents of x give: the second derivative."""
    also = _moving(d.x)
    if not also:
        return None
    w = _chosen(d.x, also)
    layers = tuple(L._replace(saved=(), w=_chosen(L.x, also)) for L in call.layers)
    return _bind(call.turned(kind, layers, also=also), given._replace(saved=(), w=w))


def _sum_of(parts: Sequence[list[Any] | None], results: list[Any]) -> list[Any]:
    total: list[Any] = [_zero_of(x) for x in results]
    for part in parts:
        total = total if part is None else _added(total, part)
    return total


def _tangent_jvp(call: _Call, given: _Parts, d: _Parts, results: list[Any]) -> list[Any]:
    of_u = None
    if some := _moving(d.u):
        layers = tuple(L._replace(u=_chosen(L.u, some)) for L in call.layers)
        along = call.turned("tangent", layers, wrt=_chosen(call.wrt, some))
        of_u = _bind(along, given._replace(u=_chosen(d.u, some)))
    return _sum_of([of_u, _along_x(call, given, d, "second")], results)


def _gradient_jvp(call: _Call, given: _Parts, d: _Parts, results: list[Any]) -> list[Any]:
    of_c = None
    if _moving(d.c):
        of_c = _bind(call, given._replace(c=tuple(map(_instantiated, d.c))))
    return _sum_of([of_c, _along_x(call, given, d, "hessian")], results)


def _last_jvp(call: _Call, given: _Parts, d: _Parts, results: list[Any]) -> list[Any]:
    """Linear in u, w or c; what the tangents of x give JAX finds out, in forward mode alone."""
    parts: list[list[Any] | None] = []
    for name in ("u", "w", "c"):
        mine = getattr(d, name)
        if _moving(mine):
            parts.append(_bind(call, given._replace(**{name: tuple(map(_instantiated, mine))})))
    if also := _moving(d.x):
        function = _compiled(call, given)
        along = lambda *x: function(*given._replace(x=_replaced(given.x, also, x)).flat())
        parts.append(list(jax.jvp(along, _chosen(given.x, also), _chosen(d.x, also))[1]))
    return _sum_of(parts, results)


# ------------------------------------------------------------------------------ its transposes


def _transpose(
    cotangents: Sequence[Any], *arrays: Any, call: _Call, lengths: Any, **_: Any
) -> list[Any]:
    given = _parts(arrays, lengths)
    unknown = _parts([ad.is_undefined_primal(x) for x in arrays], lengths)
    (name,) = [n for n in ("u", "w", "c") if any(getattr(unknown, n))]
    if all(map(_is_zero, cotangents)):
        return [ad.Zero(x.aval) if ad.is_undefined_primal(x) else None for x in arrays]
    g = tuple(map(_instantiated, cotangents))
    wanted = tuple(i for i, missing in enumerate(getattr(unknown, name)) if missing)
    turned, back = _transposed(call, given, name, wanted, g)
    found = _bind(turned, back)
    if name == "c":  # all of them are computed
        found = [found[i] for i in wanted]
    flags = [_chosen(getattr(L, name), wanted) for L in call.layers]
    found = [_unmapped(x, [f[i] for f in flags]) for i, x in enumerate(found)]
    result = dict(zip(wanted, found, strict=True))
    none = given.filled([None] * len(arrays))
    mine = tuple(result.get(i) for i in range(len(getattr(given, name))))
    return list(none._replace(**{name: mine}).flat())


def _transposed(
    call: _Call, given: _Parts, name: str, wanted: tuple[int, ...], g: Flat
) -> tuple[_Call, _Parts]:
    """The call that gives the cotangents of part `name` from those of the results, g."""
    all_mapped = (True,) * len(g)

    def turned(kind: str, drop: tuple[str, ...], gets: str, **changes: Any) -> Any:
        empty = dict.fromkeys(drop, ())
        layers = tuple(L._replace(**empty)._replace(**{gets: all_mapped}) for L in call.layers)
        parts = given._replace(**empty)._replace(**{gets: g})
        return call.turned(kind, layers, **changes), parts

    match call.kind, name:
        case "tangent", "u":
            return turned("gradient", ("u",), "c", wrt=_chosen(call.wrt, wanted))
        case "gradient", "c":
            return turned("tangent", ("c",), "u")
        case "second", "w":
            turn, parts = turned("hessian", ("w",), "c", wrt=_chosen(call.also, wanted))
            return _renamed(turn, parts, "u", "w", also=call.wrt)
        case "second", "u":
            return turned("hessian", ("u",), "c", wrt=_chosen(call.wrt, wanted))
        case "hessian", "w":
            changes = {"wrt": _chosen(call.also, wanted), "also": call.wrt}
            return turned("hessian", ("w",), "w", **changes)
        case _:
            return turned("second", ("c",), "u")


def _renamed(
    call: _Call, given: _Parts, old: str, new: str, **changes: Any
) -> tuple[_Call, _Parts]:
    move = lambda p: p._replace(**{new: getattr(p, old), old: ()})
    layers = tuple(map(move, call.layers))
    return call.turned(call.kind, layers, **changes), move(given)


def _unmapped(x: Any, mapped: list[bool]) -> Any:
    """The sum over the vmaps that did not map what x is the cotangent of; the last is outermost."""
    axes = tuple(i for i, by in enumerate(reversed(mapped)) if not by)
    return jnp.sum(x, axis=axes) if axes else x


# ------------------------------------------------------------------------------- the primitive


def _batch(
    arrays: Sequence[Any], dims: Sequence[Any], *, call: _Call, lengths: Any, **_: Any
) -> Any:
    first = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(arrays, dims, strict=True)]
    layer = _parts([d is not None for d in dims], lengths)
    mapped = call.turned(call.kind, (*call.layers, layer))
    out = _bind(mapped, _parts(first, lengths))
    return out, [0] * len(out)


def _run(*arrays: Any, call: _Call, lengths: Any, **_: Any) -> list[Any]:
    return jax.tree.leaves(_compiled(call, _parts(arrays, lengths))(*arrays))


def _out_types(*types: Any, jaxpr: Any, **_: Any) -> list[Any]:
    return jaxpr.out_avals


_PRIMITIVE = Primitive("derived")
_PRIMITIVE.multiple_results = True
_PRIMITIVE.def_impl(_run)
_PRIMITIVE.to_lojax = _run  # since JAX 0.12, where something in it is yet to be made lower
_PRIMITIVE.def_abstract_eval(_out_types)
mlir.register_lowering(_PRIMITIVE, mlir.lower_fun(_run, multiple_results=True))
ad.primitive_jvps[_PRIMITIVE] = _jvp
ad.primitive_transposes[_PRIMITIVE] = _transpose
batching.primitive_batchers[_PRIMITIVE] = _batch
