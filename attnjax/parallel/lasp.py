"""LASP-2: linear attention over many devices with one all-gather of states.

    each device: M_i, A_i of its tokens alone;  all_gather;  S_i = A_{i-1} S_{i-1} + M_{i-1};
    its outputs from S_i on, as one device computes them

M_i is the state that the tokens leave from nothing, A_i what they do to a state before them: a
product of decays, or where they erase, as the delta rule does, a matrix H x H.  Neither grows with
T.  The backward pass gathers the gradients of the S_i once and sums them up from the other end.

Paper: Sun et al., "LASP-2", 2025, arXiv:2502.07563, algorithms 1 to 4; decays and the delta rule
by the same prefix, as in flash-linear-attention's context parallelism.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.derive import Derived, Static
from attnjax.core.recurrence.chunked import Chunked
from attnjax.core.recurrence.steps import RecurrenceRequest, read
from attnjax.core.sharding import pvary_like
from attnjax.parallel.layouts import Layout, check_layout, inverse, run_starts, runs
from attnjax.parallel.tokens import LayoutSharding, Lengths
from attnjax.typing import Array

PAPERS = (349,)


@dataclass(frozen=True)
class LASP2:
    """An implementation for use inside `jax.shard_map`: `linear_attend(..., impl=LASP2("sp"))`.

    axis      mesh axis over which tokens are split
    layout    which tokens a device has: "contiguous", or "zigzag" beside attention around a ring
    chunk     tokens that a device multiplies at once
    lengths   (T, S) where the last tokens are padding; None: P times what is here

    The state to start from and the state returned are the same on all devices.
    """

    axis: str
    layout: Layout = "contiguous"
    chunk: int = 64
    lengths: Lengths | None = None

    def __post_init__(self) -> None:
        check_layout("LASP2", self.layout)

    @property
    def sharding(self) -> LayoutSharding:
        return LayoutSharding("LASP2", (self.axis,), self.layout, self.lengths)

    def supported(self, request: RecurrenceRequest) -> str | None:
        if self.layout not in ("contiguous", "zigzag"):
            return f"layout {self.layout!r}: a device needs few runs of tokens, not one by one"
        S, count = request.k.shape[1], runs(self.layout, self.sharding.size, request.k.shape[1])
        if S % count or request.q.shape[1] % count:
            return (
                f"zigzag needs even numbers of tokens here, not T = {request.q.shape[1]}, S = {S}"
            )
        T = request.q.shape[1]
        if (block := request.block) is not None and T // count % block:
            return f"blocks of {block} tokens do not divide the {T // count} that are together"
        return None

    def run(self, request: RecurrenceRequest) -> tuple[Array, Array]:
        """What the queries here read, (B,T,N,D), and the state after all tokens."""
        sharding, chunked = self.sharding, Chunked(self.chunk)
        request = self._without_padding(request)
        B, S = request.k.shape[:2]
        count = runs(self.layout, sharding.size, S)
        starts = run_starts(self.layout, sharding.size, S)
        alone = _by_run(request, count)
        from_zero, transition = _alone(alone, chunked)
        order = _RunOrder(self.axis, tuple(int(x) for x in np.argsort(starts.reshape(-1))), count)
        own = lambda x: x.reshape(count, B, *x.shape[1:])
        memory, from_zero, transition = pvary_like(
            (request.memory, from_zero, transition), (request, lax.axis_index(self.axis))
        )
        summary = _Summary(memory, own(from_zero), own(transition))
        if request.block is None:
            last = _after_all(summary, Static(order))
            nothing = request.with_tokens((request.k[:, :0], request.v[:, :0], *(None,) * 4))
            return chunked.run(replace(nothing, memory=last))
        before: Array = _before_each(summary, Static(order))
        out, after = chunked.run(
            replace(alone, memory=before.reshape(count * B, *before.shape[2:]))
        )
        return _in_a_row(out, count), self._last(order, own(after))

    def _last(self, order: "_RunOrder", after: Array) -> Array:
        """The state after the last of all runs, from the device that has it; (runs,B,N,H,D)."""
        device, run = divmod(order.rank[-1], order.count)
        here = lax.axis_index(self.axis) == device
        return lax.psum(jnp.where(here, after[run], 0.0), self.axis)

    def _without_padding(self, request: RecurrenceRequest) -> RecurrenceRequest:
        """Tokens beyond the last one write nothing and decay nothing."""
        S = request.k.shape[1]
        _, true = self.sharding.lengths(request.q.shape[1], S)
        if true == S * self.sharding.size:
            return request
        real = (self.sharding.positions(S) < true)[:, None, None]
        return request.with_tokens(jax.tree.map(lambda x: jnp.where(real, x, 0), request.tokens))


def _by_run(request: RecurrenceRequest, count: int) -> RecurrenceRequest:
    """Each run of tokens as an example of its own: (B,t,...) -> (count B,t/count,...)."""

    def split(x: Array) -> Array:
        x = x.reshape(x.shape[0], count, x.shape[1] // count, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0).reshape(-1, *x.shape[2:])

    q, *tokens = jax.tree.map(split, (request.q, *request.tokens))
    memory = jnp.tile(request.memory, (count, 1, 1, 1))
    return replace(request.with_tokens(tokens), q=q, memory=memory)


def _in_a_row(x: Array, count: int) -> Array:
    """Undoes `_by_run` for outputs."""
    x = jnp.moveaxis(x.reshape(count, -1, *x.shape[1:]), 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _alone(request: RecurrenceRequest, chunked: Chunked) -> tuple[Array, Array]:
    """The state after the tokens from zero (B,N,H,D), and what they do to a state before them.

    The latter is (B,N,1,1) or (B,N,H,1), a factor, or (B,N,H,H), a matrix: where they erase.
    """
    nothing = pvary_like(jnp.zeros_like(request.memory), request.memory)
    if not request.erases:
        from_zero = chunked.state_after(replace(request, memory=nothing))
        factor = jnp.ones((*nothing.shape[:2], 1, 1), nothing.dtype)
        if request.log_decay is not None:
            factor = jnp.exp(request.transposed(request.log_decay).sum(axis=2))[..., None]
        if request.starts is not None:  # a document that starts here keeps nothing
            started = request.transposed(request.starts).sum(axis=2)[..., None] > 0
            factor = jnp.where(started, 0.0, factor)
        return from_zero, factor
    # a state is a matrix with one column a value: the identity goes along, with values of zero
    H, D = nothing.shape[2:]
    eye = jnp.broadcast_to(jnp.eye(H, dtype=nothing.dtype), (*nothing.shape[:2], H, H))
    v = jnp.pad(request.v, [(0, 0)] * 3 + [(0, H)])
    both = chunked.state_after(
        replace(request, v=v, memory=jnp.concatenate([nothing, eye], axis=-1))
    )
    return both[..., :D], both[..., D:]


# -------------------------------------------------------------------------- the one collective


@dataclass(frozen=True)
class _RunOrder:
    """Which runs of tokens, device by device, come first in the text, and how many are here."""

    axis: str
    rank: tuple[int, ...]
    count: int


def _apply(transition: Array, state: Array) -> Array:
    if transition.shape[-1] == 1:
        return transition * state
    return read(transition, state)


def _gathered(order: _RunOrder, x: Array) -> Array:
    """(count,B,...) of each device -> (P count,B,...) of all, in the order of the text."""
    every = lax.all_gather(x, order.axis)
    return every.reshape(-1, *x.shape[1:])[np.array(order.rank)]


def _mine(order: _RunOrder, every: Array) -> Array:
    """The entries of this device's runs."""
    back = inverse(np.array(order.rank)).reshape(-1, order.count)
    return every[jnp.asarray(back)[lax.axis_index(order.axis)]]


def _states(order: _RunOrder, first: Array, from_zero: Array, transition: Array):
    """The states before each of all runs (P runs,B,N,H,D), the last one, and all transitions."""
    D, factor = from_zero.shape[-1], transition.shape[-2:]
    flat = lambda x: x.reshape(*x.shape[:3], -1)  # one array, one collective
    packed = _gathered(order, jnp.concatenate([flat(from_zero), flat(transition)], axis=-1))
    size = from_zero.shape[-2] * D
    every = packed[..., :size].reshape(*packed.shape[:3], -1, D)
    moves = packed[..., size:].reshape(*packed.shape[:3], *factor)

    def step(state: Array, run: tuple[Array, Array]) -> tuple[Array, Array]:
        return _apply(run[1], state) + run[0], state

    last, before = lax.scan(step, pvary_like(first, packed), (every, moves))
    return before, last, moves


def _gradients(order: _RunOrder, before: Array, moves: Array, d_before: Array, d_last: Array):
    """Gradients of `_states`' arguments, from those of all states, alike on all devices."""

    def step(d_after: Array, run: tuple[Array, Array, Array]):
        d_own, move, state = run
        if move.shape[-1] == 1:
            kept = move * d_after
            d_move = jnp.sum(d_after * state, axis=-1, keepdims=True)
            if move.shape[-2] == 1:
                d_move = jnp.sum(d_move, axis=-2, keepdims=True)
        else:
            kept = read(jnp.swapaxes(move, -1, -2), d_after)
            d_move = read(d_after, jnp.swapaxes(state, -1, -2))
        return d_own + kept, (d_after, d_move)

    d_first, (d_from_zero, d_moves) = lax.scan(
        step, d_last, (d_before, moves, before), reverse=True
    )
    # every device has all of d_first: one hands it on, as what is replicated is summed over devices
    one = lax.axis_index(order.axis) == 0
    d_first = jnp.where(one, d_first, 0.0)
    return _Summary(d_first, _mine(order, d_from_zero), _mine(order, d_moves))


class _Summary(NamedTuple):
    """The state before all tokens; of each run here: what it leaves from zero, does to a state."""

    first: Array
    from_zero: Array
    transition: Array


def _before(x: _Summary, order: Static) -> tuple[Array, tuple[Array, Array]]:
    before, _, moves = _states(order.value, *x)
    return _mine(order.value, before), (before, moves)


def _before_back(x: _Summary, order: Static, saved: tuple[Array, Array], d: Array) -> _Summary:
    d_before = _gathered(order.value, d)
    return _gradients(order.value, *saved, d_before, jnp.zeros_like(d_before[0]))


_before_each = Derived(_before, _before_back)  # (runs,B,N,H,D)


def _after(x: _Summary, order: Static) -> tuple[Array, tuple[Array, Array]]:
    before, last, moves = _states(order.value, *x)
    return last, (before, moves)


def _after_back(x: _Summary, order: Static, saved: tuple[Array, Array], d: Array) -> _Summary:
    d_last = lax.all_gather(d, order.value.axis).sum(axis=0)  # of the queries of all devices
    return _gradients(order.value, *saved, jnp.zeros_like(saved[0]), d_last)


_after_all = Derived(_after, _after_back)  # (B,N,H,D), on every device
