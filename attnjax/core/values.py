"""Masks, mods, normalizers and selections are values: compared and hashed by their contents."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer


class Value:
    """A frozen dataclass, registered as a pytree, that is equal to what has equal contents.

    Arrays are equal if dtypes, shapes and all elements are; traced ones if they are the same.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # into the class itself: there the dataclass decorator leaves them alone, else it would
        # compare arrays for their truth
        cls.__eq__ = Value.__eq__
        cls.__hash__ = Value.__hash__

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        mine, theirs = jax.tree.flatten(self), jax.tree.flatten(other)
        return mine[1] == theirs[1] and all(map(_same, mine[0], theirs[0]))

    def __hash__(self) -> int:
        leaves, structure = jax.tree.flatten(self)
        return hash((structure, *((np.shape(x), str(jax.numpy.result_type(x))) for x in leaves)))


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tracer) or isinstance(b, Tracer):
        return False
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
