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
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from attnjax.core import masks
from attnjax.core.normalizers import State
from attnjax.core.pairwise.operands import token_axes
from attnjax.core.pairwise.request import Request, along_tokens
from attnjax.core.recurrence import steps
from attnjax.core.sharding import in_context_of
from attnjax.parallel.allgather import AllGather
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

    Any T and S: tokens are padded to whole shares.  Arrays of any sharding, on a mesh that may have
    other axes, too; masks are those of the whole sequence.
    """

    mesh: Mesh
    strategy: Strategy

    def __post_init__(self) -> None:
        if not isinstance(self.strategy, Strategy):
            raise TypeError(
                f"On: strategy is {self.strategy!r}, expected a value such as Ring('sp')"
            )
        for axis in self.strategy.sharding.axes:
            if axis not in self.mesh.shape:
                there = ", ".join(map(repr, self.mesh.axis_names))
                raise ValueError(
                    f"{type(self.strategy).__name__}: axis is {axis!r}, expected one of the "
                    f"mesh's, {there}"
                )
        if self.strategy.sharding.layout == "given":
            raise ValueError("On: layout is 'given', expected one that On can make itself")

    def supported(self, request: Any) -> str | None:
        linear, is_linear = (
            isinstance(request, steps.RecurrenceRequest),
            isinstance(self.strategy, LASP2),
        )
        if linear != is_linear:
            return "LASP2 is for linear_attend, the others for attend"
        if not linear and request.mask.by_row:
            return "a mask's array for the queries or keys of the call: give that of the whole text"
        return None

    def run(self, request: Any) -> Any:
        if isinstance(request, steps.RecurrenceRequest):
            self._check_context()
            return in_context_of(self._auto, self._run_linear, request)
        return self._in_context(request, "run")

    def state(self, request: Request) -> State:
        """What all keys leave behind for each query."""
        return self._in_context(request, "state")

    def _check_context(self) -> None:
        """Inside another mesh JAX (0.10 to 0.12) tells no device its number along some axes."""
        outer = jax.sharding.get_abstract_mesh()
        others = set(self.mesh.axis_names) - set(self.strategy.sharding.axes)
        if outer.empty or not others or set(self.mesh.axis_names) <= set(outer.axis_names):
            return
        told = lambda names: ", ".join(map(repr, names))
        raise ValueError(
            f"On: jax.set_mesh has set a mesh of {told(outer.axis_names)}, expected that of On, of "
            f"{told(self.mesh.axis_names)}, or On over {told(self.strategy.sharding.axes)} alone"
        )

    def _in_context(self, request: Request, method: str) -> Any:
        self._check_context()
        return in_context_of(self._auto, functools.partial(self._run, method=method), request)

    @property
    def _auto(self) -> Mesh:
        """The mesh with Auto axes: those that are not the strategy's stay XLA's."""
        auto = (AxisType.Auto,) * len(self.mesh.axis_names)
        return Mesh(self.mesh.devices, self.mesh.axis_names, axis_types=auto)

    def _devices(self, axes: tuple[str, ...]) -> int:
        return int(np.prod([self.mesh.shape[axis] for axis in axes]))

    def _order(self, length: int) -> np.ndarray | None:
        """The order of the tokens on the devices; None: that of the text."""
        sharding = self.strategy.sharding
        outer = sharding.axes[: len(sharding.axes) - sharding.within]
        at = order(sharding.layout, self._devices(outer), length)
        return None if sharding.layout == "contiguous" else at

    def _mapped(self, fn: Callable, specs: Any, out: Any) -> Callable:
        names = set(self.strategy.sharding.axes)
        mapped = jax.shard_map(
            fn, mesh=self._auto, in_specs=specs, out_specs=out, axis_names=names, check_vma=False
        )
        return jax.jit(mapped)  # eagerly it takes no mesh with other axes

    def _run(self, request: Request, method: str) -> Any:
        z, axes = request.shape, self.strategy.sharding.axes
        P = self._devices(axes)
        block = 1 if request.selection is None else request.selection.block_q
        # two tokens at least: zigzag needs an even number, and an axis of one could broadcast
        T, S = _rounded(max(_rounded(z.T, 2 * P), 2 * P), block * P), _rounded(z.S, 2 * P)
        mask, known = request.mask, z.S
        if request.k_positions is not None and S > z.S:  # padding lies beyond all positions
            at = jnp.asarray(request.k_positions)
            # Not jnp.pad: of two pads of one array by different numbers, and the positions of
            # queries may be the same, XLA partitions but one (jaxlib 0.10.2 and 0.12).
            far = jnp.full((*at.shape[:-1], S - z.S), _FAR, at.dtype)
            at = jnp.concatenate([at, far], axis=-1)
            mask, known = mask & masks.prefix(_FAR), S
            request = replace(request, k_positions=at)
        strategy = replace(self.strategy, lengths=(z.T, known))
        rows, columns = self._order(T), self._order(S)
        request = along_tokens(
            request,
            lambda x, axis: _taken(_padded(x, axis, T), rows, axis),
            lambda x, axis: _taken(_padded(x, axis, S), columns, axis),
        )
        request = replace(request, shape=replace(z, T=T // P, S=S // P))
        if request.selection is not None:
            if rows is not None:
                raise ValueError("On: selected blocks need the layout 'contiguous'")
            pad = lambda x: _padded(x, 2, T // block)
            request = replace(request, selection=jax.tree.map(pad, request.selection))

        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(mask))
        # a mask that is known while tracing shortens walks
        given = replace(request, mask=mask if traced else masks.everything)

        def local(request: Request) -> Any:
            request = request if traced else replace(request, mask=mask)
            return getattr(_checked(strategy, request), method)(request)

        row = PartitionSpec(None, None, axes)
        sums = () if request.normalizer.denominator is None else (row,)
        out: Any = row if method == "run" else State(row, sums, row)  # type: ignore[arg-type]
        result = self._mapped(local, (self._specs(given),), out)(given)
        return jax.tree.map(lambda x: self._split(_untaken(x, rows, 2, z.T), 2), result)

    def _split(self, x: Array, axis: int) -> Array:
        """x, split along whole shares of tokens: what is permuted XLA would copy to all devices."""
        axes = self.strategy.sharding.axes
        if x.shape[axis] % self._devices(axes):
            return x
        spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
        spec[axis] = axes
        return lax.with_sharding_constraint(x, NamedSharding(self._auto, PartitionSpec(*spec)))

    def _specs(self, request: Request) -> Any:
        """How each array is split: along T, or along S; columns of pair operands are not."""
        axes = self.strategy.sharding.axes

        def along(axis: int | None) -> PartitionSpec:
            return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, axes)

        def operand(kind: str, x: Array) -> PartitionSpec:
            t, s = token_axes(kind, x)
            return along(s if kind.startswith("key") else t)

        rows = {name: along(2) for name in ("q", "k", "v", "q_poison")}
        at = {
            name: None if (x := getattr(request, name)) is None else along(x.ndim - 1)
            for name in ("q_positions", "k_positions")
        }
        return replace(
            jax.tree.map(lambda _: PartitionSpec(), request),
            **rows,
            **at,
            k_poison=along(3),
            mods=tuple(
                replace(m, operands=tuple(map(operand, m.kinds, m.operands))) for m in request.mods
            ),
            selection=jax.tree.map(lambda _: along(2), request.selection),
        )

    def _run_linear(self, request: steps.RecurrenceRequest) -> tuple[Array, Array]:
        T, S = request.q.shape[1], request.k.shape[1]
        axes = self.strategy.sharding.axes
        step = 2 * self._devices(axes) * (request.block or 1)
        strategy: Any = replace(self.strategy, lengths=(T, S))
        keys = _rounded(S, request.writes * step)
        rows, columns = self._order(_rounded(T, step)), self._order(keys)
        of_keys = lambda x: _taken(_padded(x, 1, keys), columns, 1)
        q = _taken(_padded(request.q, 1, _rounded(T, step)), rows, 1)
        given = replace(request.with_tokens(jax.tree.map(of_keys, request.tokens)), q=q)
        along = PartitionSpec(None, axes)
        specs = replace(jax.tree.map(lambda _: along, given), memory=PartitionSpec())
        local = lambda request: _checked(strategy, request).run(request)
        out, memory = self._mapped(local, (specs,), (along, PartitionSpec()))(given)
        return self._split(_untaken(out, rows, 1, T), 1), memory


def _checked(strategy: Strategy, request: Any) -> Strategy:
    if (reason := strategy.supported(request)) is not None:
        raise ValueError(f"{strategy!r} does not run this call: {reason}")
    return strategy


def _rounded(length: int, step: int) -> int:
    return -(-length // step) * step


def _taken(x: Array, at: np.ndarray | None, axis: int) -> Array:
    return x if at is None else jnp.take(x, at, axis=axis)


def _untaken(x: Array, at: np.ndarray | None, axis: int, length: int) -> Array:
    """Undoes `_taken`, and cuts the padding off."""
    x = x if at is None else jnp.take(x, inverse(at), axis=axis)
    return lax.slice_in_dim(x, 0, length, axis=axis)


def _padded(x: Array, axis: int, length: int) -> Array:
    """Zeros at the end, up to a length."""
    more = [(0, max(0, length - n) if i == axis else 0) for i, n in enumerate(x.shape)]
    return jnp.pad(x, more)


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
