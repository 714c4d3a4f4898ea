"""The record of one mechanism, read off its signature, and the drawing of its inputs.

A leaf ends with `OPS = (Op(fn, papers=(..), ...),)`.  What the annotations say is not said again:
the letters of the shapes, which arguments are arrays, what `impl` goes to, and so which laws apply.
Tests, the command line and the table of papers read these records.
"""

import functools
import inspect
import math
import types
import typing
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray

Sizes = Mapping[str, int]

SIZES: Sizes = MappingProxyType(
    {"B": 2, "T": 9, "S": 9, "N": 4, "K": 2, "H": 8, "D": 8, "W": 8, "R": 7, "M": 4}
)
"""What the letters are in a sample, unless a record or a law says otherwise."""


# ------------------------------------------------------------------------------------ what to draw


@dataclass(frozen=True)
class Slot:
    """An argument to be drawn: random numbers, the sizes of the letters, its annotation."""

    rng: np.random.Generator
    sizes: Sizes
    hint: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The annotated shape."""
        return _shape(_letters(_array_of(self.hint)), self.sizes)

    def normal(self, letters: str, scale: float = 1.0) -> np.ndarray:
        """Normal numbers of the shape that the letters spell."""
        return scale * self.rng.standard_normal(_shape(letters.split(), self.sizes))

    def tree(self) -> Any:
        """What is drawn of the annotation when the record is silent."""
        return _draw_tree(self.hint, self, 1.0)


@dataclass(frozen=True)
class Draw:
    """How to draw an argument: a function of its slot, which gives a NumPy array or any value."""

    make: Callable[[Slot], Any]


def normal(scale: float = 1.0, mean: float = 0.0) -> Draw:
    """Normal numbers; with mean 0 and scale 1, what an array is when the record is silent."""
    return Draw(lambda slot: mean + scale * slot.rng.standard_normal(slot.shape))


def uniform(low: float, high: float) -> Draw:
    """Uniform numbers in [low, high)."""
    return Draw(lambda slot: slot.rng.uniform(low, high, slot.shape))


def fill(value: float) -> Draw:
    """An array of one number."""
    return Draw(lambda slot: np.full(slot.shape, value))


def _log_gates(slot: Slot) -> np.ndarray:
    return -np.logaddexp(0.0, -2.0 - slot.rng.standard_normal(slot.shape))


log_gates = Draw(_log_gates)
"""Logarithms of gates in (0, 1), most of them near one."""


def by_sizes(value: Callable[[Sizes], Any]) -> Draw:
    """A value that depends on the sizes of the letters."""
    return Draw(lambda slot: value(slot.sizes))


def adjusted(change: Callable[[Any], Any]) -> Draw:
    """What the annotation says, an array or a tree of them, changed by a function."""
    return Draw(lambda slot: change(slot.tree()))


def grid(T: int) -> tuple[int, int]:
    """(rows, columns) of the most square grid of T cells."""
    rows = next(r for r in range(math.isqrt(T), 0, -1) if T % r == 0)
    return rows, T // rows


square_grid = by_sizes(lambda z: grid(z["T"]))
"""The most square grid of T cells, for ops that lay their tokens out on one."""


# -------------------------------------------------------------------------------------- the record


@dataclass(frozen=True)
class Limit:
    """A setting under which the op must equal a simpler function.

    The law compares `op.fn(**arguments)`, some of them drawn as `given` says, with `equals`, which
    gets those of the same arguments that it has parameters for.
    """

    says: str
    given: Mapping[str, Any]
    equals: Callable[..., Any]


Reads = Literal["past", "mask", "all"]


@dataclass(frozen=True)
class Op:
    """One mechanism: the function, its papers, and what its signature cannot say.

    fn       the public function; its annotations spell shapes in the letters of `typing`
    papers   ids of the papers it implements, as in papers.csv
    reads    what a token may see: "past", its own and earlier tokens; "mask", what the argument
             `mask` allows; "all", both directions.  By default "mask" where fn takes one, else
             "past".  A law tests it: what may not be read has no effect, what may be has one
    draw     argument -> a `Draw`, or a plain value; arrays without one are standard normal, trees
             of arrays are drawn field by field
    sizes    letters that differ from `SIZES`
    limits   settings and what they must equal; a law
    exempt   law -> the reason why it does not apply, where no property tells
    """

    fn: Callable[..., Any]
    papers: tuple[int, ...] = ()
    reads: Reads | None = None
    draw: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    exempt: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.fn.__name__

    @property
    def module(self) -> str:
        return self.fn.__module__

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def family(self) -> str:
        """The family of its papers, as in papers.csv: the folder of its leaf."""
        return self.module.split(".")[-2].replace("_", "-")

    @functools.cached_property
    def params(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.fn).parameters

    @functools.cached_property
    def hints(self) -> Mapping[str, Any]:
        return typing.get_type_hints(self.fn, include_extras=True)

    @functools.cached_property
    def shapes(self) -> Mapping[str, tuple[str, ...]]:
        """Array argument -> the letters of its shape."""
        arrays = {name: _array_of(self.hints.get(name)) for name in self.params}
        return {name: _letters(kind) for name, kind in arrays.items() if kind is not None}

    @property
    def letters(self) -> frozenset[str]:
        """The letters in the shapes of its required arrays."""
        needed = [s for name, s in self.shapes.items() if self._required(name)]
        return frozenset(letter for shape in needed for letter in shape)

    @property
    def engine(self) -> str | None:
        """The engine that its `impl` goes to, or None."""
        notes = getattr(self.hints.get("impl"), "__metadata__", ())
        return notes[0] if notes else None

    @property
    def may_read(self) -> Reads:
        """`reads`, or what follows from the signature."""
        return self.reads or ("mask" if "mask" in self.params else "past")

    @property
    def kind(self) -> str:
        """attention, mixer, loss, policy or probe: which laws there are for it."""
        out = self.hints.get("return")
        if (array := _array_of(out)) is not None and not _letters(array):
            return "loss"
        if "q" in self.params:
            chooses = isinstance(out, type) and out is not Any and array is None
            return "policy" if chooses else "attention"
        return "mixer" if "x" in self.params else "probe"

    def _required(self, name: str) -> bool:
        return self.params[name].default is inspect.Parameter.empty

    def sample(
        self, seed: int = 0, draw: Mapping[str, Any] | None = None, **sizes: int
    ) -> dict[str, Any]:
        """One set of arguments; `draw` and `sizes` override those of the record.

        Each argument has random numbers of its own, so that one can be changed alone.
        """
        z = {**SIZES, **self.sizes, **sizes}
        wanted = {**self.draw, **(draw or {})}
        names = [n for n in self.params if n in wanted or self._required(n)]
        silent = Draw(Slot.tree)
        return {name: self._drawn(name, wanted.get(name, silent), seed, z) for name in names}

    def _drawn(self, name: str, how: Any, seed: int, z: Sizes) -> Any:
        hint = self.hints.get(name)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if not isinstance(how, Draw):
            return how
        slot = Slot(rng, z, hint)
        try:
            return _on_device(how.make(slot), hint)
        except _NotArrays:
            raise TypeError(
                f"{self.name}: {name} is annotated {hint!r}, expected a float array, a tree of "
                "them, or a value in the record's draw"
            ) from None


# --------------------------------------------------------------------------- reading annotations


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint alone."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _array_of(hint: Any) -> Any:
    """The jaxtyping annotation in a hint, the first of a union, or None."""
    found = (x for x in _alternatives(hint) if isinstance(x, type) and issubclass(x, AbstractArray))
    return next(found, None)


def _letters(array: Any) -> tuple[str, ...]:
    return tuple(letter.lstrip("*") for letter in array.dim_str.split())


def _shape(letters: Iterable[str], z: Sizes) -> tuple[int, ...]:
    return tuple(int(x) if x.isdigit() else z[x] for x in letters)


class _NotArrays(TypeError):
    """An annotation that says no shapes."""


def _draw_tree(hint: Any, slot: Slot, scale: float) -> Any:
    """Arrays, and named tuples of them: their fields' annotations are read in turn.

    `Annotated[Affine, "W D"]` gives a field's tuple letters of its own, in the order in which its
    letters appear first.
    """
    if (array := _array_of(hint)) is not None and "float" in array.dtypes[0]:
        return scale * slot.rng.standard_normal(_shape(_letters(array), slot.sizes))
    for kind in _alternatives(hint):
        if not (isinstance(kind, type) and hasattr(kind, "_fields")):
            continue
        fields = typing.get_type_hints(kind, include_extras=True)
        notes = getattr(hint, "__metadata__", ())
        z = dict(slot.sizes)
        if notes:
            z |= _renamed(fields.values(), notes[0].split(), z)
        inner = Slot(slot.rng, z, hint)
        return kind(*(_draw_tree(fields[name], inner, 0.3) for name in kind._fields))  # type: ignore[attr-defined]
    raise _NotArrays(hint)


def _renamed(hints: Iterable[Any], letters: list[str], z: Sizes) -> dict[str, int]:
    arrays = [_array_of(hint) for hint in hints]
    shapes = [_letters(array) for array in arrays if array is not None]
    own = dict.fromkeys(x for shape in shapes for x in shape if not x.isdigit())
    return dict(zip(own, _shape(letters, z), strict=True))


def _on_device(x: Any, hint: Any) -> Any:
    """NumPy's float arrays as JAX's, in float32; its integers, too, where the argument is one."""

    def convert(a: Any) -> Any:
        if not isinstance(a, np.ndarray):
            return a
        if a.dtype == np.float64:
            return jnp.asarray(a.astype(np.float32))
        return a if _array_of(hint) is None else jnp.asarray(a)

    return jax.tree.map(convert, x)


# -------------------------------------------------------------------------------------- gathering


def gather(names: Mapping[str, Any]) -> tuple[Op, ...]:
    """The records of the leaves whose functions a family imports, in that order, each once."""
    modules = dict.fromkeys(inspect.getmodule(x) for x in names.values() if inspect.isfunction(x))
    return tuple(op for module in modules for op in getattr(module, "OPS", ()))
