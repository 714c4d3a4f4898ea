"""Masks as elementwise functions of positions and of what rides with queries and keys.

A mask with arrays looks them up by position.  A kernel cannot run a gather in the middle of a
function, but it reads operands of queries, keys or cells as it reads those of mods.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.masks import Mask
from attnjax.kernels.flash.pieces import Function, Operand
from attnjax.typing import Array


@dataclass(frozen=True)
class _Joined:
    """Functions of positions under one operator, each with so many of the operands."""

    logic: Callable[..., Any]
    parts: tuple[Callable[..., Any], ...]
    counts: tuple[int, ...]

    def __call__(self, q_pos: Any, k_pos: Any, *xs: Any) -> Any:
        rest = iter(xs)
        given = [[next(rest) for _ in range(count)] for count in self.counts]
        return self.logic(*(f(q_pos, k_pos, *x) for f, x in zip(self.parts, given, strict=True)))


@dataclass(frozen=True)
class _Plain:
    """A mask of positions alone."""

    mask: Mask

    def __call__(self, q_pos: Any, k_pos: Any) -> Any:
        return self.mask.allowed(q_pos, k_pos)


def _same_document(q_pos: Any, k_pos: Any, q_id: Any, k_id: Any) -> Any:
    return (q_id == k_id) & (q_id >= 0)


def _before_ends(q_pos: Any, k_pos: Any, q_end: Any, k_end: Any) -> Any:
    return (q_pos < q_end) & (k_pos < k_end)


def _cell(q_pos: Any, k_pos: Any, value: Any) -> Any:
    return value


Riding = tuple[Function, tuple[Array, ...]]


def riding(mask: Mask, q_positions: Array, k_positions: Array, heads: int) -> Riding | None:
    """The mask as a function with operands, and these; None for one that this does not know.

    q_positions (B|1,X|1,T) and k_positions (B|1,X|1,S).
    """
    if isinstance(mask, masks.Document):
        ids = [
            _at(mask.q_ids, q_positions, heads)[..., None],
            _at(mask.k_ids, k_positions, heads)[..., None, :],
        ]
        return _leaf(_same_document, *ids)
    if isinstance(mask, masks.Lengths):
        far = jnp.full((1,), 2**31 - 1, jnp.int32)
        ends = [far if x is None else jnp.asarray(x, jnp.int32) for x in (mask.q, mask.k)]
        return _leaf(_before_ends, *(x[:, None, None, None] for x in ends))
    if isinstance(mask, masks.BoolArray):
        return _cells(mask.mask, (1, 1))
    if isinstance(mask, masks.BlockLayout):
        return _cells(mask.layout, (mask.block_q, mask.block_k))
    if isinstance(mask, masks.Not | masks.Pair):
        inner = [mask.a] if isinstance(mask, masks.Not) else [mask.a, mask.b]
        parts = [riding(m, q_positions, k_positions, heads) for m in inner]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        logic = jnp.logical_not if isinstance(mask, masks.Not) else type(mask)._logic
        fns = tuple(f.fn for f, _ in known)
        joined = _Joined(logic, fns, tuple(len(f.operands) for f, _ in known))
        operands = sum((f.operands for f, _ in known), ())
        return Function(joined, operands, True), sum((x for _, x in known), ())
    if jax.tree.leaves(mask):
        return None
    return Function(_Plain(mask), (), True), ()


def _leaf(fn: Callable[..., Any], *arrays: Array) -> Riding:
    operands = tuple(Operand("plain", x.shape, "int32") for x in arrays)
    return Function(fn, operands, True), arrays


def _cells(x: Any, cell: tuple[int, int]) -> Riding:
    x = jnp.asarray(x)
    x = x.reshape((1,) * (4 - x.ndim) + x.shape)
    return Function(_cell, (Operand("cells", x.shape, "bool", cell),), True), (x,)


def _at(table: Any, positions: Array, heads: int) -> Array:
    """table[b, position] for a table (X,) or (B,X): (B|1,N|1,t)."""
    table = jnp.asarray(table, jnp.int32)
    table = table.reshape(-1, 1, table.shape[-1])
    if positions.shape[1] > 1:
        positions = jnp.repeat(positions, heads // positions.shape[1], axis=1)
    read = functools.partial(jnp.take_along_axis, axis=-1)
    B, X = max(len(table), len(positions)), positions.shape[1]
    table = jnp.broadcast_to(table, (B, X, table.shape[-1]))
    place = jnp.clip(positions, 0, table.shape[-1] - 1)
    return read(table, jnp.broadcast_to(place, (B, X, positions.shape[-1])))
