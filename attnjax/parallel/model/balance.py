"""Balance: how much of a mask falls to each device.

    area_d    = #{(i, k) : i among the queries of device d, the mask allows (i, k)}
    visited_d = the area of the tiles of device d's queries that are not empty
    imbalance = max_d / mean_d

The slowest device sets the time, so that an imbalance of 1.5 loses a third of the machine.
"""

import sys
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from attnjax.core import masks
from attnjax.parallel.layouts import order, order_of_documents

PAPERS = (53,)

_TILE = 512
_LAYOUTS = ("contiguous", "zigzag", "striped")


def row_counts(mask: masks.Mask, T: int, S: int) -> np.ndarray:
    """How many of S keys each of T queries may attend to, int64 (T,), in O(tiles) memory.

    Of a mask that varies by example or head, the sum over those it has.
    """
    mask = mask.resolve(T, S)
    places = np.arange(max(T, S), dtype=np.int32)
    kinds = int(np.prod(np.shape(mask.allowed(places[:1, None], places[None, :1]))[:-2]))
    counts = np.zeros(T, np.int64)
    for i, tiles in enumerate(np.asarray(mask.tiles(T, S, _TILE, _TILE))):
        rows = places[:T][i * _TILE : (i + 1) * _TILE]
        full, partial = (np.flatnonzero(tiles == kind) for kind in (masks.FULL, masks.PARTIAL))
        counts[rows] += kinds * np.minimum(_TILE, S - full * _TILE).sum()
        for j in partial:
            columns = places[:S][j * _TILE : (j + 1) * _TILE]
            allowed = np.asarray(mask.allowed(rows[:, None], columns[None]))
            allowed = np.broadcast_to(allowed, (*allowed.shape[:-2], len(rows), len(columns)))
            # a sum over bools is slow, counting those of whole rows is not
            counts[rows] += np.count_nonzero(allowed, axis=-1).reshape(-1, len(rows)).sum(0)
    return counts


def areas(mask: masks.Mask, positions: Any, S: int) -> np.ndarray:
    """The number of pairs that the mask allows to each device's queries, int64 (P,).

    `positions` (P, T/P) are those of each device's queries, each of 0 .. T-1 once.
    """
    positions = _positions("areas", positions)
    return row_counts(mask, positions.size, S)[positions].sum(1)


def visited(mask: masks.Mask, positions: Any, block_q: int, block_k: int) -> np.ndarray:
    """The area of the tiles that blockwise attention computes on each device, int64 (P,).

    `positions` (P, T/P) are those of each device's tokens, queries and keys alike; a block is part
    of one device, judged by its smallest and largest position, and a tile is visited unless the
    mask is EMPTY on it.
    """
    positions = _positions("visited", positions)
    mask = mask.resolve(positions.size, positions.size)
    (q_lo, q_hi, rows), (k_lo, k_hi, columns) = (
        _blocks(name, positions, block) for name, block in (("q", block_q), ("k", block_k))
    )
    k_lo, k_hi = k_lo.reshape(1, -1), k_hi.reshape(1, -1)
    columns = np.tile(columns, len(positions))
    area = []
    for low, high in zip(q_lo, q_hi, strict=True):  # a device at a time, to bound the memory
        kinds = np.asarray(mask.classify(low[:, None], high[:, None], k_lo, k_hi))
        some = (kinds != masks.EMPTY).any(axis=tuple(range(kinds.ndim - 2)))
        some = np.broadcast_to(some, (len(rows), len(columns)))
        area.append(rows @ (some @ columns))
    return np.array(area)


def imbalance(x: np.ndarray) -> float:
    """max / mean: 1 where all devices have the same, P where one has all."""
    return float(x.max() / x.mean())


def random_documents(length: int, documents: int, seed: int) -> np.ndarray:
    """Ids (length,) of packed documents, cut at random places."""
    places = np.random.default_rng(seed).choice(length - 1, documents - 1, replace=False) + 1
    return np.searchsorted(np.sort(places), np.arange(length), side="right").astype(np.int32)


def balance(
    length: int = 65536, devices: int = 8, window: int = 1024, documents: int = 16,
    block_q: int = 128, block_k: int = 128, seed: int = 0,
) -> None:  # fmt: skip
    """Tells how evenly each layout spreads the work of some masks over devices.

    Each cell is max / mean over the devices, of the pairs that the mask allows and of the tiles
    that blockwise attention visits, and how many pairs are in those tiles for each allowed one.

    Args:
        length: Tokens in all, a multiple of twice the devices.
        devices: Devices that share the tokens.
        window: How far back a query sees under the mask with a window.
        documents: Packed documents, of random lengths.
        block_q: Queries in a tile.
        block_k: Keys in a tile.
        seed: Chooses the lengths of the documents.
    """
    sizes = {
        "length": length, "devices": devices, "documents": documents,
        "block_q": block_q, "block_k": block_k,
    }  # fmt: skip
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, expected an integer from 1 on")
    if window < 0 or seed < 0:
        name, value = ("window", window) if window < 0 else ("seed", seed)
        raise ValueError(f"{name} is {value}, expected an integer from 0 on")
    if length % (2 * devices):
        near = -(-length // (2 * devices)) * 2 * devices
        raise ValueError(
            f"length is {length}, expected a multiple of 2 * devices = {2 * devices}, as {near} is"
        )
    if documents > length:
        raise ValueError(f"documents is {documents}, expected at most length = {length}")
    ids = random_documents(length, documents, seed)
    named = {
        "causal": masks.causal,
        f"causal & window({window})": masks.causal & masks.window(window),
        f"causal & {documents} documents": masks.causal & masks.document(ids),
        "full": masks.window(None, None),
    }
    table = Table("mask", *(f"{name}: area, tiles" for name in _LAYOUTS))
    worst = dict.fromkeys(_LAYOUTS, 1.0)
    for name, mask in named.items():
        cells, counts = [], row_counts(mask, length, length)
        for layout in _LAYOUTS:
            by_document = layout == "zigzag" and name.endswith("documents")
            found = (
                order_of_documents(ids, devices) if by_document else order(layout, devices, length)
            )
            positions = found.reshape(devices, -1)
            area, tiles = counts[positions].sum(1), visited(mask, positions, block_q, block_k)
            ratios = imbalance(area), imbalance(tiles)
            worst[layout] = max(worst[layout], *ratios)
            cells.append(f"{ratios[0]:.3f}, {ratios[1]:.3f}  x{tiles.sum() / area.sum():.2f}")
        table.add_row(name, *cells)
    console = Console(
        width=None if sys.stdout.isatty() else 160, markup=False, highlight=False, emoji=False
    )
    console.print(table)
    told = ", ".join(f"{name} {value:.3f}" for name, value in worst.items())
    print(f"{length} tokens over {devices} devices, the worst max / mean of each layout: {told}")


def _positions(name: str, positions: Any) -> np.ndarray:
    positions = np.asarray(positions)
    if positions.ndim != 2:
        raise ValueError(f"{name}: positions has shape {positions.shape}, expected (devices, T/P)")
    if not np.issubdtype(positions.dtype, np.integer):
        raise TypeError(f"{name}: positions has dtype {positions.dtype}, expected integers")
    if not np.array_equal(np.sort(positions, None), np.arange(positions.size)):
        raise ValueError(f"{name}: positions are not each of 0 .. {positions.size - 1} once")
    return positions.astype(np.int32)


def _blocks(name: str, positions: np.ndarray, block: int) -> tuple[np.ndarray, ...]:
    """Smallest and largest position of each block (P, blocks), and how many it has (blocks,)."""
    if block < 1:
        raise ValueError(f"visited: block_{name} is {block}, expected an integer from 1 on")
    starts = np.arange(0, positions.shape[1], block)
    low, high = (f.reduceat(positions, starts, axis=1) for f in (np.minimum, np.maximum))
    return low, high, np.minimum(block, positions.shape[1] - starts)
