"""Blockwise execution in XLA: a loop over the tiles that hold anything.

O(T + S) memory, forward and backward; the loops are those of `sweep`.  Reverse mode is a custom
VJP that computes tiles again; `Blockwise(derivative="forward")` leaves differentiation to JAX
instead, which can do forward mode alone.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp

from attnjax.core import normalizers, sweep
from attnjax.core.call import Call, along_tokens
from attnjax.core.manual import varying
from attnjax.core.mods import group_of
from attnjax.core.normalizers import State
from attnjax.core.schedule import choose_blocks, plan, whole_groups
from attnjax.core.selected import one_by_one, over_heads, plan_selected
from attnjax.core.sweep import Inputs, Part, Schedules
from attnjax.typing import Array


@dataclass(frozen=True)
class Blockwise:
    """The implementation as a value: `attend(..., impl=Blockwise(block_q=128))`.

    block_q, block_k   sizes of the tiles; None chooses them by mask, T, S and number of heads.
                       Under a selection its blocks of keys are those of the tiles
    derivative         "reverse": gradients in O(T + S) memory, jvp raises (jvp of grad works);
                       "forward": jvp and what is built on it; grad raises
    """

    block_q: int | None = None
    block_k: int | None = None
    derivative: Literal["reverse", "forward"] = "reverse"

    def __post_init__(self) -> None:
        for name in ("block_q", "block_k"):
            size = getattr(self, name)
            if size is not None and (not isinstance(size, int) or size < 1):
                raise ValueError(f"Blockwise: {name} is {size!r}, expected a positive integer")
        if self.derivative not in ("reverse", "forward"):
            raise ValueError(
                f"Blockwise: derivative is {self.derivative!r}, expected 'reverse' or 'forward'"
            )

    def supported(self, call: Call) -> str | None:
        """None: every mod, mask and normalizer runs blockwise."""
        return None

    def run(self, call: Call) -> Array:
        """The weighted sum of values, (B,N,T,D)."""
        return normalizers.finish(call.normalizer, self.state(call))

    def state(self, call: Call) -> State:
        """What the keys leave behind for each query, to be merged with what other keys leave."""
        if call.selection is not None:
            return over_heads(self._selected, call, one_by_one)
        z, at = call.shape, (call.q_positions, call.k_positions)
        group = group_of(call.mods)
        block_q, block_k = choose_blocks(call.mask, z, *at, group)
        block_q = min(self.block_q or block_q, z.T)
        block_k = whole_groups(min(self.block_k or block_k, z.S), group)
        schedule = plan(call.mask, z, block_q, block_k, *at)
        if not len(schedule.entries):  # the mask allows nothing at all
            return sweep.empty_state(call.normalizer, call.q, z.D)
        padded = pad(call, whole_groups(z.T, block_q), whole_groups(z.S, block_k))
        state = _run[self.derivative](*_alike(padded), (schedule,))
        return jax.tree.map(lambda x: x[..., : z.T, :], state)

    def _selected(self, call: Call) -> State:
        schedules = plan_selected(call, self.block_q)
        block_k = schedules[0].block_k
        padded = pad(
            replace(call, selection=None), call.shape.T, whole_groups(call.shape.S, block_k)
        )
        return _run[self.derivative](*_alike(padded), schedules)


def pad(call: Call, T: int, S: int) -> Call:
    """The call with T and S rounded up to whole tiles; `Shape` keeps the true lengths."""
    z = call.shape
    if (T, S) == (z.T, z.S):
        return call

    return along_tokens(call, lambda x, at: stretch(x, at, T), lambda x, at: stretch(x, at, S))


def stretch(x: Array, axis: int, to: int) -> Array:
    """Zeros at the end up to a length; positions go on with the last one."""
    mode = "edge" if jnp.issubdtype(x.dtype, jnp.integer) else "constant"
    return jnp.pad(x, [(0, to - n if i == axis else 0) for i, n in enumerate(x.shape)], mode)


def _alike(call: Call) -> tuple[Inputs, Call]:
    """The call taken apart; what differs between devices at all does so everywhere."""
    x, rest = sweep.split(call.scaled())
    return varying(x, (x, rest)), rest


def _over(part: Part) -> sweep.Fold:
    """All keys are one part."""
    return lambda visit, carry: visit(part, carry)


@jax.custom_vjp
def _reverse(x: Inputs, rest: Call, schedules: Schedules) -> State:
    return _reverse_fwd(x, rest, schedules)[0]


def _reverse_fwd(x: Inputs, rest: Call, schedules: Schedules):
    state, saved = sweep.forward(x, rest, _over(Part(x, rest, schedules)))
    return state, (x, rest, schedules, saved)


def _reverse_bwd(residuals, cotangents: State):
    x, rest, schedules, saved = residuals
    over = _over(Part(x, rest, schedules))
    return sweep.backward(x, rest, saved, cotangents, over, over), None, None


_reverse.defvjp(_reverse_fwd, _reverse_bwd)


def _forward_only(x: Inputs, rest: Call, schedules: Schedules) -> State:
    return sweep.forward(x, rest, _over(Part(x, rest, schedules)))[0]


# Called eagerly, too, a pass over the tiles compiles once per shape.
_run = {"reverse": jax.jit(_reverse), "forward": jax.jit(_forward_only)}
