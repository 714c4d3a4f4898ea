"""Masks as elementwise functions of positions and operands: the form in which a kernel takes them.

A mask with arrays looks them up by position.  A kernel cannot run a gather in the middle of a
function, but it reads an array per query, per key or per cell of a layout as it reads the operands
of mods.  So a mask says which arrays those are (`Mask.as_function`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from attnjax.typing import Array


class MaskOperand(NamedTuple):
    """An array of a mask's function, and how its element for a query and a key is found.

    array  int32, float32 or bool, (B|1, N|1, T|1, S|1): one element per query, per key or per pair
    cell   None; or (rows, columns): the array is (B|1, N|1, X, Y), read at
           [query position // rows, key position // columns], kept inside
    """

    array: Array
    cell: tuple[int, int] | None = None


class MaskFunction(NamedTuple):
    """fn(q_position, k_position, *elements of the operands) -> bool, elementwise.

    `fn` is part of what a program is compiled for: a function of a module, or a hashable value that
    equals its like, so that the program is found again.  It holds no arrays.
    """

    fn: Callable[..., Any]
    operands: tuple[MaskOperand, ...] = ()


@dataclass(frozen=True)
class OfPositions:
    """The function of a mask without arrays."""

    mask: Any

    def __call__(self, q_position: Any, k_position: Any) -> Any:
        return self.mask.allowed(q_position, k_position)


@dataclass(frozen=True)
class _Joined:
    """Functions under one operator, each with so many of the operands."""

    logic: Callable[..., Any]
    functions: tuple[Callable[..., Any], ...]
    counts: tuple[int, ...]

    def __call__(self, q_position: Any, k_position: Any, *elements: Any) -> Any:
        values, first = [], 0
        for function, count in zip(self.functions, self.counts, strict=True):
            own = elements[first : first + count]
            values.append(function(q_position, k_position, *own))
            first += count
        return self.logic(*values)


def join(logic: Callable[..., Any], parts: Sequence[MaskFunction | str]) -> MaskFunction | str:
    """logic(part, ...), or the reason of the first part that is none."""
    functions: list[MaskFunction] = []
    for part in parts:
        if isinstance(part, str):
            return part
        functions.append(part)
    joined = _Joined(
        logic, tuple(f.fn for f in functions), tuple(len(f.operands) for f in functions)
    )
    return MaskFunction(joined, tuple(x for f in functions for x in f.operands))


def read_at(table: Any, positions: Array, heads: int) -> Array:
    """table[b, n, position] for positions (B|1,X|1,t): (B|1,heads|1,t).

    The table is (X,), (B,X) or (B|1,heads|1,X).
    """
    table = jnp.asarray(table)
    table = table if table.ndim == 3 else table.reshape(-1, 1, table.shape[-1])
    if positions.shape[1] > 1:
        positions = jnp.repeat(positions, heads // positions.shape[1], axis=1)
    B, N = max(len(table), len(positions)), max(table.shape[1], positions.shape[1])
    table = jnp.broadcast_to(table, (B, N, table.shape[-1]))
    inside = jnp.clip(positions, 0, table.shape[-1] - 1)
    inside = jnp.broadcast_to(inside, (B, N, positions.shape[-1]))
    return jnp.take_along_axis(table, inside, axis=-1)
