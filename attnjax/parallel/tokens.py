"""Tokens that the devices of a mesh axis share: who has which, inside `jax.shard_map`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import masks
from attnjax.core.masks.derived import Inside
from attnjax.core.pairwise.request import Request
from attnjax.core.sharding import SequenceSharding
from attnjax.parallel.layouts import Layout, inverse, order, run_starts, runs
from attnjax.typing import Array

Lengths = tuple[int, int]  # (T, S)


@dataclass(frozen=True)
class LayoutSharding(SequenceSharding):
    """The tokens of each device along mesh axes, T/P and S/P of them, in a layout.

    name      of the strategy, for errors
    axes      mesh axes over which tokens are split, the slowest first
    within    how many of the axes, the last ones, split the part that a layout gives to a device
    lengths   the true T and S, where the last tokens are padding; None: there is none
    """

    name: str
    axes: tuple[str, ...]
    layout: Layout
    lengths_: Lengths | None = None
    within: int = 0

    @property
    def size(self) -> int:
        """P, the number of devices that share the tokens."""
        return int(np.prod([axis_size(self.name, axis) for axis in self.axes]))

    @property
    def parts(self) -> int:
        """How many parts the layout has: P, or fewer where inner axes split each."""
        outer = self.axes[: len(self.axes) - self.within]
        return int(np.prod([axis_size(self.name, axis) for axis in outer]))

    def lengths(self, T: int, S: int) -> Lengths:
        """The lengths of the sequences of which T and S tokens are here."""
        P = self.size
        whole = T * P, S * P
        if self.lengths_ is None:
            return whole
        for letter, true, padded in zip("TS", self.lengths_, whole, strict=True):
            if not 0 < true <= padded:
                raise ValueError(
                    f"{self.name}: lengths gives {letter} = {true}, expected 1 .. {padded}, as "
                    f"{P} devices have {padded // P} tokens each"
                )
        return self.lengths_

    def columns(self, S: int) -> int:
        return S * self.size

    def positions(self, local: int) -> Array:
        """The positions of the `local` tokens of this device, (local,)."""
        index = lax.axis_index(self.axes)
        if self.layout == "striped" and not self.within:
            return index + self.size * jnp.arange(local, dtype=jnp.int32)
        inner = self.size // self.parts
        part = self.positions_of(index // inner, local * inner)
        return lax.dynamic_slice_in_dim(part, index % inner * local, local)

    def positions_of(self, part: Array, local: int) -> Array:
        """The positions of the `local` tokens of a part of the layout, (local,)."""
        if self.layout == "striped":
            return part + self.parts * jnp.arange(local, dtype=jnp.int32)
        starts = jnp.asarray(run_starts(self.layout, self.parts, local))[part]
        within = jnp.arange(local // starts.shape[0], dtype=jnp.int32)
        return (starts[:, None] + within).reshape(-1)

    def order(self, length: int) -> np.ndarray:
        """The position of each of `length` tokens, device by device."""
        return order(self.layout, self.parts, length)

    def in_text_order(self, x: Array, axis: int) -> Array:
        """All tokens, gathered device by device, as they stand in the text."""
        if self.layout == "contiguous":
            return x
        return jnp.take(x, inverse(self.order(x.shape[axis])), axis=axis)

    def in_layout_order(self, x: Array, axis: int) -> Array:
        """Undoes `in_text_order`."""
        if self.layout == "contiguous":
            return x
        return jnp.take(x, self.order(x.shape[axis]), axis=axis)

    def cumsum(self, x: Array, axis: int) -> Array:
        """The sum over all tokens up to each one here, in the order of the text.

        Sums of whole runs travel, one number for each run of neighboring tokens.
        """
        if self.layout == "given":
            raise ValueError(
                f"{self.name}: a running sum over tokens needs a layout with a name, not 'given'; "
                "sum before the tokens are laid out"
            )
        x = jnp.moveaxis(x, axis, 0)
        local, P = x.shape[0], self.size
        count = runs(self.layout, P, local) if not self.within else self._runs_within(local)
        own = jnp.cumsum(x.reshape(count, local // count, *x.shape[1:]), axis=1)
        totals = lax.all_gather(own[:, -1], self.axes)  # (P, runs, ...)
        totals = totals.reshape(P * count, *totals.shape[2:])
        starts = self.order(local * P)[:: local // count]
        rank = np.argsort(starts)
        before = jnp.cumsum(totals[rank], axis=0) - totals[rank]
        before = before[inverse(rank)].reshape(P, count, *totals.shape[1:])
        here = lax.dynamic_index_in_dim(before, lax.axis_index(self.axes), keepdims=False)
        return jnp.moveaxis((own + here[:, None]).reshape(x.shape), 0, axis)

    def gathered(self, x: Array, axis: int) -> Array:
        """x of all tokens, in the order of the text, the same on all devices."""
        x = jnp.moveaxis(x, axis, 0)
        every = jnp.zeros((x.shape[0] * self.size, *x.shape[1:]), x.dtype)
        every = every.at[self.positions(x.shape[0])].set(x, unique_indices=True)
        return jnp.moveaxis(lax.psum(every, self.axes), 0, axis)

    def own(self, x: Array, axis: int) -> Array:
        """The tokens of this device, of an array of all tokens in the order of the text."""
        return jnp.take(x, self.positions(x.shape[axis] // self.size), axis=axis)

    def _runs_within(self, local: int) -> int:
        """Runs of one device where several share a part of the layout: they may end in between."""
        ends = np.flatnonzero(np.diff(self.order(local * self.size)) != 1) + 1
        return local // int(np.gcd.reduce(np.append(ends, local)))


def without_padding(request: Request, sharding: LayoutSharding) -> masks.Mask:
    """The mask of a call with tokens of this device, which forbids the padding among all."""
    z = request.shape
    (T, S), whole = sharding.lengths(z.T, z.S), (z.T * sharding.size, z.S * sharding.size)
    if (T, S) == whole:
        return request.mask
    # positions that the caller gives under a named layout are not those of padding
    own = lambda x: x is None or sharding.layout == "given"
    ends = (T if own(request.q_positions) else None, S if own(request.k_positions) else None)
    return Inside(request.mask, *ends)


def axis_size(name: str, axis: str) -> int:
    """The size of a mesh axis inside shard_map; a ValueError tells who needs it and what there is.

    Raises ValueError outside shard_map, and for an axis that the mesh does not have.
    """
    try:
        return lax.axis_size(axis)
    except NameError:
        there = jax.sharding.get_abstract_mesh().axis_names
        if not there:
            raise ValueError(
                f"{name}: called outside jax.shard_map, where there is no axis {axis!r}; for "
                "global arrays take parallel.shard or parallel.On"
            ) from None
        raise ValueError(
            f"{name}: axis is {axis!r}, expected one of the mesh's, {', '.join(map(repr, there))}"
        ) from None
