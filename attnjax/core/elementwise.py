"""Whether a function of arrays is elementwise, read off its jaxpr.

What a mod gives for a pair may depend on that pair alone: the engine shows it a tile, a matrix, a
row, as it likes.  A function that sums over the keys, say, would give another result for each.

The function is traced for scores of four odd sizes, and the jaxpr searched for operations that mix
places along an axis of such a size, in what derives from the arguments.  So tables that the
function holds may be gathered from, and sums over axes that it makes itself are no matter.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from attnjax.core.closures import name_of

SIZES = (37, 41, 43, 47)  # B, N, t, s, unlike those of tables

_MIXING = {
    "sort", "top_k", "approx_top_k", "rev", "dot_general", "ragged_dot", "conv_general_dilated",
    "fft", "scatter", "scatter-add", "scatter_add", "scatter_mul", "scatter_min", "scatter_max",
    "dynamic_slice", "dynamic_update_slice", "gather", "slice", "pad", "concatenate", "transpose",
    "argmax", "argmin", "select_and_scatter_add", "select_and_gather_add",
}  # fmt: skip
_PREFIXES = ("reduce_", "cum", "argm")


def problem(fn: Callable[..., Any], shapes: Sequence[Any]) -> str | None:
    """Why fn, of arguments `jax.ShapeDtypeStruct` of which the first is the score, is no mod's.

    None if it is elementwise and gives a score.
    """
    try:
        inspect.signature(fn).bind(*shapes)
    except TypeError:
        return f"does not take {len(shapes)} arguments: the score, positions if any, each operand"
    except ValueError:  # no signature is known, as for some functions in C
        pass
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*shapes)
    score = shapes[0]
    leaves = jax.tree.leaves(out)
    if len(leaves) != 1 or leaves[0] is not out:
        return f"gives {len(leaves)} arrays, expected one score"
    if (mixed := _mixes(closed.jaxpr, [True] * len(shapes))) is not None:
        return (
            f"is not elementwise: {mixed} looks at other pairs than its own, of which there are "
            "more or fewer in each tile"
        )
    if not _broadcasts(out.shape, score.shape):
        return f"gives shape {out.shape} for scores {score.shape}, expected the shape of the score"
    if not jnp.issubdtype(out.dtype, jnp.floating):
        return f"gives dtype {out.dtype}, expected a floating-point score"
    return None


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(
        a in (1, b) for a, b in zip(shape[::-1], to[::-1], strict=False)
    )


def _is_of_scores(size: int) -> bool:
    return any(size % n == 0 for n in SIZES) and size > 0


def _mixes(jaxpr: Any, given: Sequence[bool]) -> str | None:
    """The name of an operation that mixes places; `given`: which arguments derive from scores."""
    derived = {v for v, is_derived in zip(jaxpr.invars, given, strict=True) if is_derived}
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        inputs = [not isinstance(v, Literal) and v in derived for v in eqn.invars]
        if name == "iota" and any(map(_is_of_scores, eqn.params["shape"])):
            return "a range as long as the tile"
        if not any(inputs):
            continue
        derived.update(eqn.outvars)
        inner = list(_jaxprs(eqn.params.values()))
        if inner and not name.startswith(_PREFIXES) and name not in _MIXING:
            for sub in inner:
                whole = len(sub.invars) == len(inputs)
                if (
                    found := _mixes(sub, inputs if whole else [True] * len(sub.invars))
                ) is not None:
                    return found
        elif (name in _MIXING or name.startswith(_PREFIXES)) and _along_scores(eqn, inputs):
            return name
    return None


def _jaxprs(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _jaxprs(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr") and hasattr(value.jaxpr, "eqns"):
            yield value.jaxpr


def _along_scores(eqn: Any, inputs: Sequence[bool]) -> bool:
    """Whether the operation mixes places along an axis of scores."""
    name, params = eqn.primitive.name, eqn.params
    shapes = [v.aval.shape for v in eqn.invars]
    if name.startswith("reduce_precision"):
        return False
    if name in ("gather", "dynamic_slice"):  # of a table that the function holds: by index only
        return inputs[0] and any(map(_is_of_scores, shapes[0]))
    first = shapes[0]
    if name == "transpose":
        moved = [a for a, b in enumerate(params["permutation"]) if a != b]
        return sum(_is_of_scores(first[a]) for a in moved) > 1
    if name == "concatenate":
        axis = params["dimension"]
        return any(_is_of_scores(shape[axis]) for shape in shapes)
    if name == "slice":
        out = eqn.outvars[0].aval.shape
        return any(_is_of_scores(a) and a != b for a, b in zip(first, out, strict=True))
    if name == "pad":
        edges = params["padding_config"]
        return any(_is_of_scores(n) and any(e) for n, e in zip(first, edges, strict=True))
    named = (params[name] for name in ("axes", "dimensions", "axis", "dimension") if name in params)
    axes = next(named, None)
    if axes is None:
        derived = (shape for shape, is_derived in zip(shapes, inputs, strict=True) if is_derived)
        return any(_is_of_scores(n) for shape in derived for n in shape)
    axes = axes if isinstance(axes, (tuple, list)) else (axes,)
    return any(_is_of_scores(first[a]) for a in axes)


def check(fn: Callable[..., Any], shapes: tuple[Any, ...]) -> None:
    """Raises ValueError where `fn` is no elementwise function from these shapes to a score."""
    try:
        why = _cached(fn, shapes)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        why = problem(fn, shapes)
    if why is not None:
        raise ValueError(f"mods: {name_of(fn)} {why}")


_cached = functools.lru_cache(maxsize=512)(problem)


def shapes_of(
    kinds: Sequence[str], operands: Sequence[Any], positions: bool, dtype: Any
) -> tuple[Any, ...]:
    """The score, positions if any, and operands of a mod, as its function gets them."""
    B, N, t, s = SIZES
    of = {"query": (B, N, t, 1), "key": (B, N, 1, s), "head": (1, N, 1, 1)}
    whole = jax.ShapeDtypeStruct((B, N, t, s), dtype)
    places = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((t, 1), (1, s))]

    def shape(kind: str, x: Any) -> tuple[int, ...]:
        if kind == "pair":
            lead = (1,) * (4 - np.ndim(x)) + np.shape(x)
            return tuple(1 if a == 1 else n for a, n in zip(lead, SIZES, strict=True))
        return of.get(kind, (B, N, t, s))

    cut = [jax.ShapeDtypeStruct(shape(k, x), dtype) for k, x in zip(kinds, operands, strict=True)]
    return (whole, *(places if positions else []), *cut)
