"""Which tiles to visit, and how large they are."""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core.masks import EMPTY, FULL, PARTIAL, Mask
from attnjax.core.tiles import Shape
from attnjax.typing import Array

ROW_OF, COLUMN_OF, KIND_OF = range(3)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["entries"],
    meta_fields=["block_q", "block_k", "kinds"],
)
@dataclass(frozen=True)
class Schedule:
    """A flat list of tiles: entries (tiles, 3) int32 of row, column and kind, row by row.

    `kinds` are the kinds that may occur, known when tracing; EMPTY is among them only where a mask
    is traced, so that the list could not be shortened.
    """

    entries: Array | np.ndarray
    block_q: int
    block_k: int
    kinds: tuple[int, ...]

    def by_column(self) -> "Schedule":
        """The same tiles, column by column."""
        order = jnp if isinstance(self.entries, jax.Array) else np
        key = self.entries[:, COLUMN_OF]
        return replace(self, entries=self.entries[order.argsort(key, stable=True)])


def plan(mask: Mask | None, z: Shape, block_q: int, block_k: int, q_positions, k_positions):
    """The tiles of a call that hold anything, or may."""
    rows, columns = -(-z.T // block_q), -(-z.S // block_k)
    tail = np.zeros((rows, columns), bool)
    tail[:, -1] = z.S % block_k != 0  # padded keys must be masked
    if mask is None:
        kind = np.full((rows, columns), FULL, np.int8)
    else:
        kind = mask.tiles(z.T, z.S, block_q, block_k, q_positions, k_positions)
    row, column = (x.ravel() for x in np.indices((rows, columns), np.int32))
    if isinstance(kind, jax.Array):
        kind = jnp.where(tail & (kind == FULL), PARTIAL, kind).ravel().astype(jnp.int32)
        entries = jnp.stack([row, column, kind], axis=1)
        return Schedule(entries, block_q, block_k, (EMPTY, PARTIAL, FULL))
    kind = np.where(tail & (kind == FULL), PARTIAL, kind).ravel().astype(np.int32)
    entries = np.stack([row, column, kind], axis=1)[kind != EMPTY]
    kinds = tuple(int(x) for x in np.unique(entries[:, KIND_OF]))
    return Schedule(entries, block_q, block_k, kinds)


# XLA's products on a CPU run at full speed, on all cores, from about 512 x 512 x 64 on; smaller
# tiles waste less on the mask's edge.  Cost of a visit, in units of one score: its scores, plus a
# charge that stands for the fixed time of a tile and the slower small products.
_CANDIDATES = (64, 128, 256, 512)
_CHARGE = 25_000
_MOST_TILES = 1 << 22  # looked at while tracing, a byte each
_MOST_SCORES = 1 << 22  # of one tile over all batch entries and heads: 16 MiB in float32


def choose_blocks(mask: Mask | None, z: Shape, q_positions, k_positions) -> tuple[int, int]:
    """The tile sizes with the least estimated time for the mask, T, S and number of heads."""
    costs = {}
    for block in _CANDIDATES:
        block_q, block_k = min(block, z.T), min(block, z.S)
        count = -(-z.T // block_q) * -(-z.S // block_k)
        if costs and z.B * z.N * block_q * block_k > _MOST_SCORES:
            break
        if count > _MOST_TILES and block != _CANDIDATES[-1]:
            continue
        visits = len(plan(mask, z, block_q, block_k, q_positions, k_positions).entries)
        charge = _CHARGE / max(1, z.B * z.N / 8)
        costs[block_q, block_k] = visits * (block_q * block_k + charge)
    return min(costs, key=costs.__getitem__)
