"""What a function carries with it: traced arrays, and values that may change.

jit finds a compiled program by the functions that it is made of, and compares those by identity:
a function that reads a number from elsewhere would run with the number of its first call for ever.
`by_value` gives a function that equals another one if they do the same: if their code is the same
and all that they read is.
"""

import enum
import functools
import hashlib
import sys
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

_MOST = 10_000  # values that a function may read, each counted once


def traced_closure(fn: Callable[..., Any]) -> Tracer | None:
    """A traced array that the function carries with it, or None.

    It is looked for in closures, default arguments, partial arguments, globals that the function
    names, attributes of the object of a bound method, and what functions among these carry.
    """
    reader = _Reader()
    reader.key(fn)
    return reader.traced[0] if reader.traced else None


def by_value(fn: Any) -> Any:
    """The function as a value: it equals its like, of the same code that reads the same values.

    What it reads is looked up now: closures, default and partial arguments, globals that its code
    names, attributes of objects among these.  What may be changed, as NumPy's arrays, lists and
    objects, has to be the same and to hold the same; JAX's arrays have to be the same.  Functions
    of this package and of libraries, which read nothing that changes, are returned as they are.

    Raises ValueError for a function that carries more than 10,000 values.
    """
    if isinstance(fn, ByValue) or fn is None:
        return fn
    if _is_library(type(fn).__module__) and hasattr(fn, "__dataclass_fields__"):
        if all(isinstance(x, _PLAIN) for x in vars(fn).values()):
            return fn  # compared by value as it is
    key = _Reader().key(fn)
    return fn if isinstance(key, _Same) else ByValue(fn, key)


class ByValue:
    """A function that is compared by what it does; made by `by_value`."""

    def __init__(self, fn: Callable[..., Any], key: Hashable) -> None:
        self.fn, self.key, self._hash = fn, key, hash(key)
        self.__name__, self.__wrapped__ = name_of(fn), fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    def __eq__(self, other: Any) -> bool:
        if self is other:
            return True
        return isinstance(other, ByValue) and self._hash == other._hash and self.key == other.key

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return repr(self.fn)


def name_of(fn: Any) -> str:
    """The name of a function, of the one in a partial, or what it prints as."""
    inner = fn.func if isinstance(fn, functools.partial) else fn
    return getattr(inner, "__name__", None) or repr(inner)


class _Same:
    """Compared by identity, and kept alive, so that no other object takes its place."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Function(NamedTuple):
    """A Python function: its code, and the keys of what it reads."""

    code: types.CodeType
    module: _Same  # whose globals it looks up
    closure: tuple[Hashable, ...]
    defaults: tuple[Hashable, ...]
    globals_read: tuple[Hashable, ...]


_NUMBERS = (float, complex, np.generic)  # NaN equals its like
_PLAIN = (bool, int, str, bytes, type(None), enum.Enum, type(...), slice, *_NUMBERS)
_LIBRARIES = {"jax", "jaxlib", "numpy", "ml_dtypes", "attnjax", "flax", "optax"}


def _is_library(module: Any) -> bool:
    top = str(module).split(".")[0]
    return top in _LIBRARIES or top in sys.stdlib_module_names and top != "__main__"


class _Reader:
    """Turns values into keys that are equal if they are; notes the traced arrays it meets."""

    def __init__(self) -> None:
        self.traced: list[Tracer] = []
        self._met: dict[int, int] = {}
        self._kept: list[Any] = []  # so that an id is of one object

    def key(self, x: Any) -> Hashable:
        if isinstance(x, Tracer):
            self.traced.append(x)
            return _Same(x)
        if isinstance(x, _PLAIN):
            return type(x), repr(x) if isinstance(x, (slice, *_NUMBERS)) else x
        if isinstance(x, (jax.Array, type, types.ModuleType, np.dtype)):
            return _Same(x)
        if id(x) in self._met:
            return "met before", self._met[id(x)]
        self._met[id(x)] = len(self._met)
        self._kept.append(x)
        if len(self._met) > _MOST:
            raise ValueError(
                f"a function reads more than {_MOST} values, so that whether they changed cannot "
                "be told at each call; expected arrays as operands, and numbers as arguments"
            )
        return self._composed(x)

    def _composed(self, x: Any) -> Hashable:
        if isinstance(x, np.ndarray):
            content = repr(x.tolist()).encode() if x.dtype.hasobject else x.tobytes()
            return _Same(x), x.shape, str(x.dtype), hashlib.blake2b(content).digest()
        if isinstance(x, tuple):
            return type(x), *map(self.key, x)
        if isinstance(x, frozenset):
            return type(x), frozenset(map(self.key, x))
        if isinstance(x, list):
            return _Same(x), *map(self.key, x)
        if isinstance(x, set):
            return _Same(x), frozenset(map(self.key, x))
        if isinstance(x, dict):
            return _Same(x), *((self.key(k), self.key(v)) for k, v in x.items())
        if isinstance(x, functools.partial):
            return functools.partial, self.key(x.func), self.key(x.args), self.key(x.keywords)
        if isinstance(x, types.MethodType):
            return types.MethodType, self.key(x.__func__), self.key(x.__self__)
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.CellType):
            return "cell", *(self.key(value) for value in _contents(x))
        return self._object(x)

    def _function(self, fn: types.FunctionType) -> Hashable:
        cells = fn.__closure__ or ()
        defaults = *(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()
        library = _is_library(fn.__module__)
        if library and not cells and not defaults:
            return _Same(fn)
        return _Function(
            fn.__code__,
            _Same(fn.__globals__),
            tuple(map(self.key, cells)),
            tuple(map(self.key, defaults)),
            () if library else tuple(self._globals_of(fn)),
        )

    def _globals_of(self, fn: types.FunctionType) -> Iterator[Hashable]:
        """The keys of the globals that its code names, of functions inside it, too."""
        names = sorted(set(_names(fn.__code__)))
        for name in names:
            if name not in fn.__globals__:
                continue
            value = fn.__globals__[name]
            yield name, self.key(value)
            if isinstance(value, (type, types.ModuleType)) and not _is_library(_module_of(value)):
                held = vars(value)
                yield from ((n, self.key(held[n])) for n in names if n in held)

    def _object(self, x: Any) -> Hashable:
        """By attributes where it has any, those of its class that are data among them."""
        kind = type(x)
        if _is_library(kind.__module__) and not hasattr(x, "__dataclass_fields__"):
            leaves = jax.tree.leaves(x)
            if not (len(leaves) == 1 and leaves[0] is x):  # a container, flax.nnx.Param among them
                return kind, *map(self.key, leaves)
            wrapped = getattr(x, "__wrapped__", None)  # of jax.jit, functools.cache
            if wrapped is None:
                return _Same(x)
            key = self.key(wrapped)
            return _Same(x) if isinstance(key, _Same) else (_Same(x), key)
        own = dict(getattr(x, "__dict__", {}))
        for parent in kind.__mro__[:-1]:
            for name in _slots(parent):
                if hasattr(x, name):
                    own[name] = getattr(x, name)
        if not own and not callable(x):
            return _Same(x)
        shared = {
            name: value
            for parent in reversed(kind.__mro__[:-1])
            for name, value in vars(parent).items()
            if not name.startswith("__") and isinstance(value, (*_PLAIN, list, dict, np.ndarray))
        }
        call = self.key(kind.__call__) if callable(x) else None
        settings = getattr(kind, "__dataclass_params__", None)
        identity = None if settings is not None and settings.frozen else _Same(x)
        return kind, identity, *self._items(shared), *self._items(own), call

    def _items(self, held: dict[str, Any]) -> tuple[Hashable, ...]:
        return tuple((name, self.key(value)) for name, value in held.items())


def _contents(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # a variable that has no value yet
        return ()


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _module_of(x: Any) -> str:
    return x.__name__ if isinstance(x, types.ModuleType) else x.__module__


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
