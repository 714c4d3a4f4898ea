"""Kernels under `jax.jit` over sharded arrays: a device runs those of its own examples and heads.

XLA cannot look into a kernel: left alone it gathers all operands on every device.  `over_devices`
tells it what may be split.  Arrays lead with the examples, B or 1 that all share; one axis of an
array may be that of heads, of which consecutive ones share where another array has fewer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

Tree = Any
Axes = tuple[str, ...]
NO_HEADS = -1


def over_devices(
    fn: Callable[..., Tree], heads: Tree, out_heads: Tree, *, one: bool = False
) -> Callable[..., Tree]:
    """fn(*trees of arrays) -> a tree of arrays, partitioned over examples and heads under jit.

    heads        which axis is that of the heads, or NO_HEADS: a tree that the arguments begin with
    out_heads    the same for results
    one          fn runs on one device only, and says so elsewhere

    A result with one example, or one head, where arguments have more is a sum over these.  Where an
    argument is split along another axis, compiling raises what XLA makes of a ValueError.  Inside
    `jax.shard_map` arrays are a device's own, and fn is called as it is.
    """

    def called(*trees: Tree) -> Tree:
        if jax.sharding.get_abstract_mesh().manual_axes:
            return fn(*trees)
        return _partitioned(fn, heads, out_heads, one)(*trees)

    return called


def _partitioned(
    fn: Callable[..., Tree], heads: Tree, out_heads: Tree, one: bool
) -> Callable[..., Tree]:
    def called(*trees: Tree) -> Tree:
        program, results = jax.make_jaxpr(fn, return_shape=True)(*trees)
        call = Call.of(trees, results, heads, out_heads)
        given, of_given = jax.tree.flatten(trees)
        wanted, of_wanted = jax.tree.flatten(results)
        constants = program.consts  # what fn closes over is an argument, too, and nowhere split

        def whole(constants: Sequence[Any], *given: Any) -> tuple[Any, ...]:
            return tuple(jax.core.eval_jaxpr(program.jaxpr, constants, *given))

        def partition(mesh: Any, given: Any, wanted: Any) -> Any:
            if one and mesh.size > 1:
                raise ValueError(f"the interpreter of kernels runs on one device, not {mesh.size}")
            constants, *given = given
            split = call.split(mesh.shape, [entries(x.sharding, len(x.shape)) for x in given])
            local = call.local(fn, split)

            def part(constants: Sequence[Any], *given: Any) -> tuple[Any, ...]:
                return tuple(jax.tree.leaves(local(*of_given.unflatten(given))))

            placed = lambda specs: tuple(NamedSharding(mesh, spec) for spec in specs)
            everywhere = [NamedSharding(mesh, PartitionSpec())] * len(constants)
            arguments = (everywhere, *placed(call.specs(call.arguments, split)))
            return mesh, part, placed(call.specs(call.results, split)), arguments

        run = custom_partitioning(whole)
        rule = lambda mesh, given, wanted: call.rule([len(x.shape) for x in given])
        run.def_partition(partition=partition, sharding_rule=rule)
        return of_wanted.unflatten(run(constants, *given))

    return called


def axes_of(heads: Tree, trees: Tree) -> list[int]:
    """The axis of the heads of every array."""
    each = lambda axis, tree: jax.tree.map(lambda _: axis, tree)
    return jax.tree.leaves(jax.tree.map(each, heads, trees))


def entries(sharding: Any, ndim: int) -> list[Axes]:
    """The mesh axes that split each axis of an array."""
    spec = getattr(sharding, "spec", None)
    if spec is None:
        raise ValueError(f"arrays of a kernel need a jax.sharding.NamedSharding, not {sharding}")
    given = [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in spec]
    return given + [()] * (ndim - len(given))


@dataclass(frozen=True)
class Split:
    """The mesh axes that split examples, and heads."""

    examples: Axes
    heads: Axes


Sized = tuple[tuple[int, ...], int]  # the shape of an array, and the axis of its heads


@dataclass(frozen=True)
class Call:
    """The arrays that a kernel takes and gives."""

    arguments: tuple[Sized, ...]
    results: tuple[Sized, ...]

    @classmethod
    def of(cls, arguments: Tree, results: Tree, heads: Tree, out_heads: Tree) -> "Call":
        """From arrays, or what has their shapes, and the axes of heads of `over_devices`."""

        def sized(arrays: Tree, heads: Tree) -> tuple[Sized, ...]:
            shapes = [x.shape for x in jax.tree.leaves(arrays)]
            return tuple(zip(shapes, axes_of(heads, arrays), strict=True))

        return cls(sized(arguments, heads), sized(results, out_heads))

    @property
    def examples(self) -> int:
        return max(shape[0] for shape, _ in self.arguments)

    @property
    def heads(self) -> list[int]:
        """The numbers of heads, from the smallest; 1 is for all."""
        sizes = {shape[axis] for shape, axis in self.arguments if axis != NO_HEADS}
        return sorted(sizes - {1})

    def rule(self, ranks: Sequence[int]) -> tuple[str, dict[str, int]]:
        """The factors of all arrays, as XLA's partitioner wants them told; constants come first.

        Only examples and heads are shared: nothing else is split because a neighbor is.
        """
        fewest = self.heads[0] if self.heads else 1
        sizes: dict[str, int] = {}

        def of_heads(size: int) -> str:
            if size == fewest:
                return "k"
            sizes[f"g{size}"] = size // fewest
            return f"(k g{size})"

        def own(name: str, rank: int) -> list[str]:
            return [f"{name}_{i}" for i in range(rank)]

        def factors(name: str, array: Sized) -> str:
            shape, axis = array
            names = own(name, len(shape))
            if shape[0] == self.examples > 1:
                names[0] = "b"
            if axis != NO_HEADS and shape[axis] > 1 and shape[axis] % fewest == 0:
                names[axis] = of_heads(shape[axis])
            return " ".join(names)

        constants = ranks[: len(ranks) - len(self.arguments)]
        told = [" ".join(own(f"c{i}", rank)) for i, rank in enumerate(constants)]
        told += [factors(f"x{i}", array) for i, array in enumerate(self.arguments)]
        results = [factors(f"y{i}", array) for i, array in enumerate(self.results)]
        return ", ".join(told) + " -> " + ", ".join(results), sizes

    def split(self, mesh: dict[str, int], given: Sequence[Sequence[Axes]]) -> Split:
        """How the arguments, split like this, are to be split; ValueError where they cannot."""
        first = lambda axes: next((a for a in axes if a), ())
        self._refuse_others(given)
        examples = first(at[0] for at in given)
        of_heads = (at[n] for at, (_, n) in zip(given, self.arguments, strict=True) if n >= 0)
        heads = tuple(a for a in first(of_heads) if a not in examples)
        for what, sizes, axes in (
            ("examples", [self.examples], examples),
            ("heads", self.heads, heads),
        ):
            parts = _size(mesh, axes)
            if any(n % parts for n in sizes):
                told = " and ".join(map(str, sizes))
                raise ValueError(f"a kernel of {told} {what} cannot be split over {parts} devices")
        return Split(examples, heads)

    def _refuse_others(self, given: Sequence[Sequence[Axes]]) -> None:
        for (shape, axis), at in zip(self.arguments, given, strict=True):
            others = [i for i, axes in enumerate(at) if axes and i not in (0, axis)]
            if others:
                raise ValueError(
                    f"an array {shape} of a kernel is split along its axis {others[0]}, over "
                    f"{at[others[0]]}: kernels are split over examples and heads alone; tokens "
                    "are for a strategy, such as impl=On(mesh, Ring(axis))"
                )

    def specs(self, arrays: Sequence[Sized], split: Split) -> list[PartitionSpec]:
        """How each of the arrays is split."""

        def spec(shape: tuple[int, ...], axis: int) -> PartitionSpec:
            at: list[Axes | None] = [None] * len(shape)
            at[0] = split.examples if shape[0] > 1 and split.examples else None
            if axis != NO_HEADS and shape[axis] > 1 and split.heads:
                at[axis] = split.heads
            return PartitionSpec(*at)

        return [spec(*array) for array in arrays]

    def local(self, fn: Callable[..., Tree], split: Split) -> Callable[..., Tree]:
        """fn of a device's own arrays, sums over examples or heads of all devices included."""
        more_heads = bool(self.heads)

        def summed(x: Any, array: Sized) -> Any:
            shape, axis = array
            axes: Axes = split.examples if shape[0] == 1 < self.examples else ()
            if axis != NO_HEADS and shape[axis] == 1 and more_heads:
                axes += split.heads
            return lax.psum(x, axes) if axes else x

        def local(*trees: Tree) -> Tree:
            leaves, tree = jax.tree.flatten(fn(*trees))
            return tree.unflatten(map(summed, leaves, self.results))

        return local


def _size(mesh: dict[str, int], axes: Axes) -> int:
    size = 1
    for axis in axes:
        size *= mesh[axis]
    return size
