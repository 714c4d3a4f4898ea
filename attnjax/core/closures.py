"""What a function carries with it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer


def traced_closure(fn: Callable[..., Any]) -> Tracer | None:
    """A traced array that the function closes over or is a partial of, or None."""
    inner = fn.func if isinstance(fn, functools.partial) else fn
    held = [cell.cell_contents for cell in getattr(inner, "__closure__", None) or ()]
    held += [*fn.args, *fn.keywords.values()] if isinstance(fn, functools.partial) else []
    return next((x for x in jax.tree.leaves(held) if isinstance(x, Tracer)), None)
