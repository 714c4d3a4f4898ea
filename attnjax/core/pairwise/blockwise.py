"""Blockwise execution in XLA: a loop over the tiles that hold anything.

O(T + S) memory, in every derivative; the loops are those of `tile_scan`, and `derive` takes forward
mode and second derivatives from its two passes.
"""

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core import normalizers
from attnjax.core.blocks.pairs import one_by_one, over_examples, over_heads, tile_lists_of_selection
from attnjax.core.derive import Derived
from attnjax.core.mods import group_of
from attnjax.core.normalizers import State
from attnjax.core.numerics import known
from attnjax.core.pairwise import tile_gradients, tile_scan
from attnjax.core.pairwise.request import Request, along_tokens
from attnjax.core.pairwise.tile_list import choose_blocks, tile_list, whole_groups
from attnjax.core.pairwise.tile_scan import Inputs, KeyShard, Saved, Schedules
from attnjax.core.sharding import pvary_like
from attnjax.typing import Array


@dataclass(frozen=True)
class Blockwise:
    """The implementation as a value: `attend(..., impl=Blockwise(block_q=128))`.

    block_q, block_k   sizes of the tiles; None chooses them by mask, T, S and number of heads.
                       Under a selection its blocks of keys are those of the tiles
    """

    block_q: int | None = None
    block_k: int | None = None

    def __post_init__(self) -> None:
        for name in ("block_q", "block_k"):
            size = getattr(self, name)
            if size is not None and (not isinstance(size, int) or size < 1):
                raise ValueError(f"Blockwise: {name} is {size!r}, expected a positive integer")

    def supported(self, request: Request) -> str | None:
        """None: every mod, mask and normalizer runs blockwise."""
        return None

    def run(self, request: Request) -> Array:
        """The weighted sum of values, (B,N,T,D)."""
        return normalizers.finish(request.normalizer, self.state(request))

    def state(self, request: Request) -> State:
        """What the keys leave behind for each query, to be merged with what other keys leave."""
        if request.selection is not None:
            return _of_selection(self, request)
        if request.differs_by_example:
            return _of_examples(self, request)
        return self._of_call(request)

    def _of_call(self, request: Request) -> State:
        z, at = request.shape, (request.q_positions, request.k_positions)
        group = group_of(request.mods)
        block_q, block_k = choose_blocks(request.mask, z, *at, group)
        block_q, block_k = self.block_q or block_q, self.block_k or block_k
        if known(z.T, z.S):
            block_q, block_k = min(block_q, z.T), min(block_k, z.S)
        block_k = whole_groups(block_k, group)
        schedule = tile_list(request.mask, z, block_q, block_k, *at)
        if schedule.entries.shape[0] == 0:  # the mask allows nothing at all
            return tile_scan.empty_state(request.normalizer, request.q, z.D)
        padded = pad(request, whole_groups(z.T, block_q), whole_groups(z.S, block_k))
        state = _run(*_alike(padded, (schedule,)))
        return jax.tree.map(lambda x: x[..., : z.T, :], state)


@functools.partial(jax.jit, static_argnums=0)
def _of_examples(impl: Blockwise, request: Request) -> State:
    return over_examples(impl._of_call, request, one_by_one)


@functools.partial(jax.jit, static_argnums=0)
def _of_selection(impl: Blockwise, request: Request) -> State:
    return over_heads(functools.partial(_of_head, impl), request, one_by_one)


def _of_head(impl: Blockwise, request: Request) -> State:
    schedules, z = tile_lists_of_selection(request, impl.block_q), request.shape
    whole = replace(request, selection=None)
    padded = pad(whole, z.T, whole_groups(z.S, schedules[0].block_k))
    return _run(*_alike(padded, schedules))


def pad(request: Request, T: int, S: int) -> Request:
    """The call with T and S rounded up to whole tiles; `Shape` keeps the true lengths."""
    z = request.shape
    if (T, S) == (z.T, z.S):
        return request

    return along_tokens(request, lambda x, at: stretch(x, at, T), lambda x, at: stretch(x, at, S))


def stretch(x: Array, axis: int, to: int) -> Array:
    """Zeros at the end up to a length; positions go on with the last one."""
    mode = "edge" if jnp.issubdtype(x.dtype, jnp.integer) else "constant"
    return jnp.pad(x, [(0, to - n if i == axis else 0) for i, n in enumerate(x.shape)], mode)


class _Rest(NamedTuple):
    """What no derivative is taken by."""

    request: Request
    schedules: Schedules


def _alike(request: Request, schedules: Schedules) -> tuple[Inputs, _Rest]:
    """The call taken apart; what differs between devices at all does so everywhere."""
    x, rest = tile_scan.split(request.scaled())
    return pvary_like(x, (x, rest)), _Rest(rest, schedules)


def _over_all(x: Inputs, rest: _Rest) -> tile_scan.KeyFold:
    """All keys are one part."""
    part = KeyShard(x, *rest)
    return lambda visit, carry: visit(part, carry)


def _forward(x: Inputs, rest: _Rest) -> tuple[State, Saved]:
    return tile_scan.forward(x, rest.request, _over_all(x, rest))


def _backward(x: Inputs, rest: _Rest, saved: Saved, cotangents: State) -> Inputs:
    over = _over_all(x, rest)
    return tile_gradients.backward(x, rest.request, saved, cotangents, over, over)


def _again(x: Inputs, rest: _Rest, saved: Saved) -> State:
    return tile_scan.again(x, rest.request, saved, _over_all(x, rest))


# Called eagerly, too, a pass over the tiles compiles once per shape.
_run = jax.jit(Derived(_forward, _backward, _again))
