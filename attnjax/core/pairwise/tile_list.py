"""Which tiles to visit, and how large they are."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core.masks import EMPTY, FULL, PARTIAL, Mask, tile_kinds
from attnjax.core.numerics import known
from attnjax.core.pairwise.operands import Shape
from attnjax.typing import Array

ROW_OF, KIND_OF = 0, 2


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["entries", "row_ends", "rows", "used"],
    meta_fields=["block_q", "block_k", "kinds"],
)
@dataclass(frozen=True)
class TileList:
    """A flat list of tiles: entries (tiles, 3) int32 of row, column and kind, row by row.

    `row_ends` (rows + 1,): the tiles of row r are entries row_ends[r] to row_ends[r + 1] - 1.
    `kinds` are the kinds that may occur, known when tracing.

    Where a mask or positions are traced, the list is as long as there could be tiles, and `used`
    says how many there are.  `rows` (rows, block_q): the queries of each row of tiles, where they
    do not stand one behind the other; each row then holds one tile.
    """

    entries: Array | np.ndarray
    row_ends: Array | np.ndarray
    block_q: int
    block_k: int
    kinds: tuple[int, ...]
    rows: Array | None = None
    used: Array | None = None


def tile_list(mask: Mask, z: Shape, block_q: int, block_k: int, q_positions, k_positions):
    """The tiles of a call that hold anything, or may."""
    rows, columns = -(-z.T // block_q), -(-z.S // block_k)
    if mask.by_row:
        q_positions = k_positions = None
    kind = tile_kinds(mask, z.T, z.S, block_q, block_k, q_positions, k_positions)
    xp = np if known(rows, columns) else jnp
    each = xp.arange(rows, dtype=np.int32)[:, None], xp.arange(columns, dtype=np.int32)[None]
    row, column = (xp.broadcast_to(x, (rows, columns)).reshape(rows * columns) for x in each)
    cut = not known(z.S) or z.S % block_k != 0
    tail = (each[1] == columns - 1) & cut  # padded keys must be masked
    if isinstance(kind, jax.Array):
        kind = jnp.where(tail & (kind == FULL), PARTIAL, kind).reshape(rows * columns)
        kind = kind.astype(jnp.int32)
        busy = kind != EMPTY
        first = jnp.argsort(~busy, stable=True)  # tiles that hold something, in their order
        entries = jnp.stack([row, column, kind], axis=1)[first]
        held = jnp.cumsum(busy.reshape(rows, columns).sum(1, dtype=jnp.int32), dtype=jnp.int32)
        ends = jnp.concatenate([jnp.zeros(1, jnp.int32), held])
        return TileList(entries, ends, block_q, block_k, (PARTIAL, FULL), used=held[-1])
    kind = np.where(tail & (kind == FULL), PARTIAL, kind).ravel().astype(np.int32)
    entries = np.stack([row, column, kind], axis=1)[kind != EMPTY]
    kinds = tuple(int(x) for x in np.unique(entries[:, KIND_OF]))
    ends = np.searchsorted(entries[:, ROW_OF], np.arange(rows + 1)).astype(np.int32)
    return TileList(entries, ends, block_q, block_k, kinds)


# The estimated time of a visit, in units of one score of one head: its scores, times a penalty if
# its matrix products are too small for XLA to share among the cores of a CPU, plus what a visit
# costs however small it is.  Measured with N = 8, H = 64 on two cores.
_CANDIDATES = ((64, 64), (128, 128), (256, 256), (256, 512), (512, 512))
_UNKNOWN = (128, 128)  # where an exported program leaves the lengths open
_VISIT = 20_000
_SHARED_PRODUCT = 256 * 512 * 64
_PENALTY = 1.8
_MOST_TILES = 1 << 22  # looked at while tracing, a byte each
_MOST_SCORES = 1 << 20  # of one tile over all batch entries and heads: 4 MiB, near the caches


def whole_groups(size: int, group: int) -> int:
    """`size` rounded up to a multiple of `group`."""
    return -(-size // group) * group


def choose_blocks(
    mask: Mask, z: Shape, q_positions, k_positions, group: int = 1
) -> tuple[int, int]:
    """The tile sizes with the least estimated time for the mask, T, S and number of heads.

    block_k is a multiple of `group`.
    """
    if not known(z.B, z.T, z.S):
        return _UNKNOWN[0], whole_groups(_UNKNOWN[1], group)
    costs = {}
    for candidate in _CANDIDATES:
        block_q, block_k = min(candidate[0], z.T), whole_groups(min(candidate[1], z.S), group)
        scores = z.B * z.N * block_q * block_k
        if costs and scores > _MOST_SCORES:
            break
        count = -(-z.T // block_q) * -(-z.S // block_k)
        if count > _MOST_TILES and candidate != _CANDIDATES[-1]:
            continue
        visits = len(tile_list(mask, z, block_q, block_k, q_positions, k_positions).entries)
        shared = z.N // z.K * block_q * block_k * max(z.H, z.D) >= _SHARED_PRODUCT
        costs[block_q, block_k] = visits * (_VISIT + scores * (1 if shared else _PENALTY))
    return min(costs, key=costs.__getitem__)
