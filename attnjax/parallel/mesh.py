"""Strategies over global arrays: what `jax.jit` shows, whatever the devices.

    On(mesh, strategy)            an implementation for global arrays in the order of the text
    shard(op, mesh, strategy)     the op with it

The engine's call alone goes into `jax.shard_map`, laid out and padded; what an op does around it
(feature maps, running sums, block scores) stays with XLA's partitioner.  So every op runs.  Under a
permuted layout each call permutes its tokens and the result: a training loop that is to save that
lays its batches out once (`parallel.layout`) and calls strategies inside its own shard_map.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from attnjax.core import masks, recurrent, tiles
from attnjax.core.call import Call, along_tokens
from attnjax.core.normalizers import State
from attnjax.parallel.gather import AllGather
from attnjax.parallel.lasp import LASP2
from attnjax.parallel.layouts import inverse, order
from attnjax.parallel.ring import Ring
from attnjax.parallel.ulysses import USP, Ulysses
from attnjax.typing import Array

_FAR = 2**30  # beyond every position

Strategy = Ring | Ulysses | USP | AllGather | LASP2


@dataclass(frozen=True)
class On:
    """An implementation for global arrays under jit: `attend(..., impl=On(mesh, Ring("sp")))`.

    Any T and S: tokens are padded to whole shares.  Arrays of any sharding; the result is split
    over the strategy's axes along T.  Masks are those of the whole sequence.
    """

    mesh: Mesh
    strategy: Strategy

    def __post_init__(self) -> None:
        if not isinstance(self.strategy, Strategy):
            raise TypeError(
                f"On: strategy is {self.strategy!r}, expected a value such as Ring('sp')"
            )
        for axis in self.strategy.tokens.axes:
            if axis not in self.mesh.shape:
                there = ", ".join(map(repr, self.mesh.axis_names))
                raise ValueError(
                    f"{type(self.strategy).__name__}: axis is {axis!r}, expected one of the "
                    f"mesh's, {there}"
                )
        if self.strategy.tokens.layout == "given":
            raise ValueError("On: layout is 'given', expected one that On can make itself")

    def supported(self, call: Any) -> str | None:
        linear, is_linear = isinstance(call, recurrent.Call), isinstance(self.strategy, LASP2)
        if linear != is_linear:
            return "LASP2 is for linear_attend, the others for attend"
        return None

    def run(self, call: Any) -> Any:
        if isinstance(call, recurrent.Call):
            return self._run_linear(call)
        return self._run(call, "run")

    def state(self, call: Call) -> State:
        """What all keys leave behind for each query."""
        return self._run(call, "state")

    @property
    def _share(self) -> int:
        """Lengths are padded to a multiple of this."""
        tokens = self.strategy.tokens
        P = int(np.prod([self.mesh.shape[axis] for axis in tokens.axes]))
        return 2 * P  # two tokens at least: zigzag needs them, and an axis of one would broadcast

    def _parts(self, length: int) -> np.ndarray:
        tokens = self.strategy.tokens
        outer = tokens.axes[: len(tokens.axes) - tokens.within]
        parts = int(np.prod([self.mesh.shape[axis] for axis in outer]))
        return order(tokens.layout, parts, length)

    def _mapped(self, fn: Callable, specs: Any, out: Any) -> Callable:
        mesh = Mesh(self.mesh.devices, self.mesh.axis_names, axis_types=_auto(self.mesh))
        return jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)

    def _run(self, call: Call, method: str) -> Any:
        z, share = call.shape, self._share
        blocks = call.selection
        T, S = (-(-n // share) * share for n in (z.T, z.S))
        if blocks is not None:
            step = share // 2 * blocks.block_q
            T = -(-max(z.T, share) // step) * step
        mask, true_S = call.mask, z.S
        if call.k_positions is not None and S > z.S:  # padding lies beyond all positions
            at = call.k_positions.ndim - 1
            call = replace(call, k_positions=_padded(call.k_positions, at, S, _FAR))
            mask, true_S = masks.prefix(_FAR) if mask is None else mask & masks.prefix(_FAR), S
        strategy = replace(self.strategy, lengths=(z.T, true_S))
        rows, columns = self._parts(T), self._parts(S)
        permuted = strategy.tokens.layout != "contiguous"

        def laid(x: Array, axis: int, length: int, at: np.ndarray) -> Array:
            x = _padded(x, axis, length)
            return jnp.take(x, at, axis=axis) if permuted else x

        call = along_tokens(
            call, lambda x, axis: laid(x, axis, T, rows), lambda x, axis: laid(x, axis, S, columns)
        )
        call = replace(call, shape=replace(z, T=T // (share // 2), S=S // (share // 2)))
        if blocks is not None:
            if permuted:
                raise ValueError("On: selected blocks need the layout 'contiguous'")
            U = T // blocks.block_q
            pad = lambda x: _padded(x, 2, U)
            blocks = replace(blocks, indices=pad(blocks.indices), valid=pad(blocks.valid))
            call = replace(call, selection=blocks)

        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(mask))
        given = replace(call, mask=mask if traced else None)  # a known mask shortens walks

        def local(call: Call) -> Any:
            call = call if traced else replace(call, mask=mask)
            return getattr(_checked(strategy, call), method)(call)

        axes = strategy.tokens.axes
        row = PartitionSpec(None, None, axes)
        n = call.normalizer
        out: Any = row
        if method == "state":
            out = State(row, () if n.denominator is None else (row,), row)
        result = self._mapped(local, (self._specs(given),), out)(given)
        back = inverse(rows)[: z.T]
        return jax.tree.map(
            lambda x: jnp.take(x, back, axis=2) if permuted else x[:, :, : z.T], result
        )

    def _specs(self, call: Call) -> Any:
        """How each array is split: along T, or along S; columns of pair operands are not."""
        axes = self.strategy.tokens.axes
        along = lambda axis: (
            PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, axes)
        )

        def operand(kind: str, x: Array) -> PartitionSpec:
            t, s = tiles.along(kind, x)
            return along(s if kind.startswith("key") else t)

        rows = {name: along(2) for name in ("q", "k", "v", "q_poison")}
        at = {
            name: None if (x := getattr(call, name)) is None else along(x.ndim - 1)
            for name in ("q_positions", "k_positions")
        }
        return replace(
            jax.tree.map(lambda _: PartitionSpec(), call),
            **rows,
            **at,
            k_poison=along(3),
            mods=tuple(
                replace(m, operands=tuple(map(operand, m.kinds, m.operands))) for m in call.mods
            ),
            selection=jax.tree.map(lambda _: along(2), call.selection),
        )

    def _run_linear(self, call: recurrent.Call) -> Any:
        T, S = call.q.shape[1], call.k.shape[1]
        step = self._share * (call.block or 1)
        whole = lambda n: -(-n // step) * step
        strategy = replace(self.strategy, lengths=(T, S))
        rows, columns = self._parts(whole(T)), self._parts(whole(S))
        permuted = strategy.tokens.layout != "contiguous"

        def laid(x: Array | None, length: int, at: np.ndarray) -> Array | None:
            if x is None:
                return None
            x = _padded(x, 1, length)
            return jnp.take(x, at, axis=1) if permuted else x

        keys = [laid(x, whole(S), columns) for x in (call.k, call.v, call.log_decay, call.beta)]
        given = replace(
            call, q=laid(call.q, whole(T), rows),
            k=keys[0], v=keys[1], log_decay=keys[2], beta=keys[3],
        )  # fmt: skip
        along = PartitionSpec(None, strategy.tokens.axes)
        specs = replace(jax.tree.map(lambda _: along, given), memory=PartitionSpec())

        def local(call: recurrent.Call) -> Any:
            return _checked(strategy, call).run(call)

        out, memory = self._mapped(local, (specs,), (along, PartitionSpec()))(given)
        back = inverse(rows)[:T]
        return (jnp.take(out, back, axis=1) if permuted else out[:, :T]), memory


def _auto(mesh: Mesh) -> tuple[AxisType, ...]:
    return (AxisType.Auto,) * len(mesh.axis_names)


def _checked(strategy: Strategy, call: Any) -> Strategy:
    if (reason := strategy.supported(call)) is not None:
        raise ValueError(f"{strategy!r} does not run this call: {reason}")
    return strategy


def _padded(x: Array, axis: int, length: int, value: int = 0) -> Array:
    """The same number at the end, up to a length."""
    more = [(0, max(0, length - n) if i == axis else 0) for i, n in enumerate(x.shape)]
    return jnp.pad(x, more, constant_values=value)


def shard(op: Callable[..., Any], mesh: Mesh, strategy: Strategy) -> Callable[..., Any]:
    """`op` with its attention run across the devices of a mesh; call it under `jax.jit`.

    op(*args, **kwargs) -> the same results, of the same global arrays; op takes `impl`.

        ring = shard(forgetting_attention, jax.make_mesh((8,), ("sp",)), Ring("sp", "zigzag"))
        out = jax.jit(ring)(q, k, v, log_f)

    Raises TypeError for an op without `impl` and a strategy of another kind, ValueError for an axis
    that the mesh does not have; a call that the strategy cannot run raises with the reason.
    """
    if "impl" not in inspect.signature(op).parameters:
        name = getattr(op, "__name__", op)
        raise TypeError(f"shard: {name!r} takes no impl, expected an op that does")
    return functools.partial(op, impl=On(mesh, strategy))
