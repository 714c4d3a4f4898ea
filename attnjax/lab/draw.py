"""Pictures of what there is: a mask, written as in Python, or who reads whom in a mechanism."""

import ast
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from attnjax.core import masks
from attnjax.lab.errors import UserError
from attnjax.lab.plots import attention_maps
from attnjax.op import Op
from attnjax.probes.influence import influence

_JOIN: dict[type, Callable[[Any, Any], Any]] = {
    ast.BitAnd: lambda a, b: a & b,
    ast.BitOr: lambda a, b: a | b,
}


def mask_of(text: str) -> masks.Mask:
    """The mask that `text` says, such as "causal & (window(8) | sinks(2))".

    Names are those of `attnjax.masks`; arguments are numbers, tuples and lists.  Nothing else is
    executed.  Raises UserError for all other text.
    """
    try:
        found = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError) as error:
        raise UserError(f"mask: {text!r}: {error}") from None
    if not isinstance(found, masks.Mask):
        raise UserError(f"mask: {text!r} is {type(found).__name__}, expected a mask")
    return found


def _value(node: ast.AST) -> Any:
    match node:
        case ast.Name(id=name) if not name.startswith("_") and hasattr(masks, name):
            return getattr(masks, name)
        case ast.Call(func=ast.Name() as maker, args=args, keywords=keywords):
            named = {x.arg: ast.literal_eval(x.value) for x in keywords if x.arg}
            return _value(maker)(*map(ast.literal_eval, args), **named)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _JOIN:
            return _JOIN[type(op)](_value(left), _value(right))
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return ~_value(operand)
    raise ValueError(f"{ast.unparse(node)} is no mask, expected names, calls, &, | and ~")


def picture_of_mask(text: str, length: int = 64) -> Figure:
    """Which keys each query may attend to."""
    seen = np.asarray(mask_of(text).dense(length, length), np.float32)
    seen = seen.reshape(-1, length, length)
    return attention_maps({"": seen}, title=text)


def picture_of_op(op: Op, length: int = 36) -> Figure:
    """How strongly each output depends on each token, by values, or whatever tokens it takes.

    Inputs are those that its laws draw.  Raises UserError where it takes no tokens, or gives none.
    """
    given = op.sample(0, B=1, T=length, S=length)
    of = next((n for n in ("v", "x", "k") if len(op.shapes.get(n, ())) >= 3), None)
    if of is None:
        raise UserError(f"{op.name}: takes neither v, x nor k, by which tokens could be told apart")
    rest = {name: x for name, x in given.items() if name != of}
    fn = functools.partial(_called, op.fn, of, rest)
    out = jax.eval_shape(fn, given[of])
    if not isinstance(out, jax.ShapeDtypeStruct) or out.ndim < 3:
        raise UserError(f"{op.name}: gives {out}, expected one array (B,T,...)")
    maps = np.asarray(jax.jit(functools.partial(influence, fn))(given[of]))
    first = (inspect.getdoc(inspect.getmodule(op.fn)) or op.name).splitlines()[0]
    return attention_maps({f"by {of}": maps}, title=f"{op.name}\n{first}")


def _called(fn: Callable[..., Any], of: str, rest: dict[str, Any], x: jax.Array) -> Any:
    return fn(**rest, **{of: jnp.asarray(x)})
