"""Engine 3: the blocks of keys that each block of queries attends to, as a value.

    scores of blocks -> Selection(indices, valid, block_q, block_k) -> attend(q, k, v, blocks=...)

Sizes are static, so a selection is an array like any other; which entries count is `valid`.  The
work is that of the blocks selected, whichever they are, in forward and backward pass.  `select`
makes selections.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from attnjax.core.pairwise.operands import Shape
from attnjax.core.values import Value
from attnjax.typing import Array, Bool, Leaf


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["indices", "valid"],
    meta_fields=["block_q", "block_k"],
)
@dataclass(frozen=True)
class Selection(Value):
    """The blocks of keys that each block of queries attends to: M at most.

    indices   (B,U,X,M) integers.  U = ceil(T / block_q) blocks of queries; X = 1, K or N heads that
              select for themselves
    valid     (B,U,X,M) booleans.  Valid entries of one row differ from each other; what stands at
              an invalid entry does not matter
    block_q   how many neighboring queries are a block, and
    block_k   how many neighboring keys; they need not divide T and S

    Query i of head n sees key j if block j // block_k is selected for block i // block_q and the
    head that selects for n.  Raises ValueError for block sizes that are not positive integers.
    """

    indices: Leaf
    valid: Leaf
    block_q: int
    block_k: int

    def __post_init__(self) -> None:
        for name in ("block_q", "block_k"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
                raise ValueError(f"Selection: {name} is {size!r}, expected a positive integer")

    def dense(self, n: int) -> Bool[Array, "B U X n"]:
        """Which of the n blocks of keys each block of queries sees."""
        indices = jnp.where(self.valid, self.indices, -1)
        return (indices[..., None] == jnp.arange(n)).any(-2)

    def laid_out(self, z: Shape, columns: int, group: int) -> "Selection":
        """The same with arrays (B,X,U,M), and indices in range wherever they are valid.

        `columns` is the number of all keys, `group` that of neighboring keys that mods look at.
        Raises ValueError for what does not fit T, S and heads; outside jit also for an index out of
        range and for a block that is listed twice.
        """
        n = -(-columns // self.block_k)
        self._check(z)
        self._check_entries(n)
        if self.block_k % group:
            raise ValueError(
                f"attend: block_k is {self.block_k}, expected a multiple of the mods' group {group}"
            )
        indices = jnp.asarray(self.indices)
        valid = jnp.asarray(self.valid) & (indices >= 0) & (indices < n)
        by_head = lambda x: jnp.swapaxes(x, 1, 2)
        return Selection(by_head(indices), by_head(valid), int(self.block_q), int(self.block_k))

    def _check(self, z: Shape) -> None:
        U, shape = -(-z.T // self.block_q), jnp.shape(self.indices)
        if jnp.shape(self.valid) != shape:
            raise ValueError(
                f"attend: blocks.valid has shape {jnp.shape(self.valid)}, expected that of "
                f"blocks.indices, {shape}"
            )
        fits = len(shape) == 4 and shape[:2] == (z.B, U) and shape[2] in (1, z.K, z.N)
        if not fits or not shape[3]:
            raise ValueError(
                f"attend: blocks have shape {shape}, expected (B,U,X,M) with B = {z.B}, "
                f"U = ceil(T / block_q) = {U}, X one of 1, K = {z.K}, N = {z.N}, and M at least 1"
            )
        if not jnp.issubdtype(jnp.result_type(self.indices), jnp.integer):
            raise TypeError(
                f"attend: blocks.indices has dtype {jnp.result_type(self.indices)}, "
                "expected integers"
            )

    def _check_entries(self, n: int) -> None:
        if isinstance(self.indices, Tracer) or isinstance(self.valid, Tracer):
            return
        indices, valid = np.asarray(self.indices), np.asarray(self.valid)
        wrong = valid & ((indices < 0) | (indices >= n))
        if wrong.any():
            where = tuple(int(x) for x in np.argwhere(wrong)[0])
            raise ValueError(
                f"attend: blocks.indices{list(where)} is {indices[where]}, expected 0 .. {n - 1}"
            )
        ordered = np.sort(np.where(valid, indices, -1 - np.arange(indices.shape[-1])), axis=-1)
        twice = (ordered[..., 1:] == ordered[..., :-1]).any(-1)
        if twice.any():
            where = tuple(int(x) for x in np.argwhere(twice)[0])
            raise ValueError(
                f"attend: blocks.indices{list(where)} lists a block twice, expected different "
                "blocks"
            )
