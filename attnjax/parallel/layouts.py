"""Layouts: which tokens of a sequence each of P devices holds, and in which order.

    contiguous   device d holds chunk d of P
    zigzag       device d holds chunks d and 2P-1-d of 2P: equal work under a causal mask
    striped      device d holds tokens d, d+P, d+2P, ...

A layout is an order of the tokens, cut evenly: device d holds entries d*T/P .. (d+1)*T/P - 1.  Each
device's part is a few runs of neighboring tokens, of one length.

`layout` puts arrays in such an order, and the position of each token beside them; `unlayout` takes
them back.  Packed documents are cut each on its own (`order_of_documents`).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import register_dataclass

from attnjax.core.sharding import on_any_mesh

Layout = Literal["contiguous", "zigzag", "striped", "given"]
"""The names; "given" is any order at all, which the caller tells by positions."""


def check_layout(name: str, layout: str) -> None:
    """Raises ValueError, in the name of what was called, for an unknown layout."""
    if layout not in get_args(Layout):
        expected = ", ".join(map(repr, get_args(Layout)))
        raise ValueError(f"{name}: layout is {layout!r}, expected one of {expected}")


def runs(layout: Layout, devices: int, local: int) -> int:
    """How many runs of neighboring tokens the `local` tokens of a device are."""
    return {"contiguous": 1, "zigzag": 2, "striped": local, "given": local}[layout]


def run_starts(layout: Layout, devices: int, local: int) -> np.ndarray:
    """The position at which each run of each device starts, (devices, runs).

    Raises ValueError where `local` tokens cannot be laid out so.
    """
    d = np.arange(devices, dtype=np.int32)[:, None]
    if layout == "contiguous":
        return d * local
    if layout == "zigzag":
        if local % 2:
            raise ValueError(
                f"zigzag: {local} tokens for each of {devices} devices, expected an even number"
            )
        return np.concatenate([d, 2 * devices - 1 - d], axis=1) * (local // 2)
    if layout == "striped":
        return d + devices * np.arange(local, dtype=np.int32)
    raise ValueError("layout 'given': the order of the tokens is known by their positions alone")


def order(layout: Layout, devices: int, length: int) -> np.ndarray:
    """The position of each token in layout order, (length,); length a multiple of devices."""
    if length % devices:
        raise ValueError(
            f"{layout}: {length} tokens for {devices} devices, expected a multiple of {devices}"
        )
    local = length // devices
    starts = run_starts(layout, devices, local)
    within = np.arange(local // starts.shape[1], dtype=np.int32)
    return (starts[:, :, None] + within).reshape(-1)


def inverse(order: np.ndarray) -> np.ndarray:
    """Where each position stands in layout order."""
    back = np.empty_like(order)
    back[order] = np.arange(len(order), dtype=order.dtype)
    return back


def order_of_documents(documents: np.ndarray, devices: int) -> np.ndarray:
    """The position of each token, (T,), where every packed document is zigzagged on its own.

    `documents` (T,) are ids, one run of neighbors each; a negative one is padding.  Of a document
    of L tokens the first L mod 2P are dealt one by one, always to a device that has fewest so far;
    the rest is 2P equal chunks, and device d takes chunks d and 2P-1-d.  Every device thus has T/P
    tokens, an equal share of every document but for a few tokens, and under a causal mask equal
    work but for those few, which come first in their document and see the least.  Padding fills
    up.  A device's tokens are in order of position; one document alone is `order("zigzag", ..)`.

    Meant for documents whose chunks are longer than a tile of blockwise attention: a block of many
    short chunks spans several documents, and tiles that a plain zigzag skips are then computed
    (`attnjax.parallel.balance` counts them).
    """
    documents, length = _documents("order_of_documents", documents), len(documents)
    if length % devices:
        raise ValueError(_indivisible("order_of_documents", "zigzag", devices, length, devices))
    holder = np.empty(length, np.int32)
    count, work = np.zeros(devices, np.int64), np.zeros(devices, np.int64)  # of what was dealt
    roles = np.minimum(np.arange(2 * devices), np.arange(2 * devices)[::-1])  # 0 .. P-1, P-1 .. 0
    for start, stop in _runs_of(documents):
        if documents[start] < 0:
            continue
        chunk, over = divmod(stop - start, 2 * devices)
        holder[start + over : stop] = np.repeat(roles, chunk)
        while over:  # from the last to the first: those that see most go to who has done least
            least = np.lexsort((work, count))[:over]
            places = np.arange(over, over - len(least), -1)
            holder[start + places - 1] = least
            count[least] += 1
            work[least] += places
            over -= len(least)
    padding = np.flatnonzero(documents < 0)
    # Counts differ by one at most, so that padding to the fullest device or beyond evens them.
    lacking = (count.sum() + len(padding)) // devices - count
    holder[padding] = np.repeat(np.arange(devices), lacking)
    return np.argsort(holder, kind="stable").astype(np.int32)


# ---------------------------------------------------------------- arrays in layout order


@register_dataclass
@dataclass(frozen=True, eq=False)
class LaidOut:
    """Arrays in layout order along `axis`, and the position of each of their tokens.

    `values` is a tree of arrays, `positions` (T,) says where in the text each token stands, P parts
    of T/P; it goes wherever the tokens go.  What was computed from the values returns to the order
    of the text by `unlayout(laid.replace(values=out))`.
    """

    values: Any
    positions: Any
    layout: Layout = dataclasses.field(metadata={"static": True})
    devices: int = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(metadata={"static": True})

    def replace(self, **changes: Any) -> "LaidOut":
        """The same layout of other values."""
        return dataclasses.replace(self, **changes)


def layout(
    x: Any, devices: int, layout: Layout = "zigzag", *, axis: int = 1, documents: Any = None
) -> LaidOut:
    """Puts arrays in layout order: a tree of NumPy or JAX arrays of one length along `axis`.

    `documents` (T,), concrete ids of packed documents, zigzags each document on its own; the result
    is then of layout "given", any order that its positions tell.
    """
    check_layout("layout", layout)
    if layout == "given":
        raise ValueError(
            "layout: layout is 'given', which has no order of its own; expected a name"
        )
    if isinstance(devices, bool) or not isinstance(devices, int | np.integer) or devices < 1:
        raise ValueError(f"layout: devices is {devices!r}, expected an integer from 1 on")
    for _, leaf in jax.tree_util.tree_leaves_with_path(x, is_leaf=_is_laid_out):
        if isinstance(leaf, LaidOut):
            how = f"already laid out as {leaf.layout} over {leaf.devices} devices"
            raise ValueError(f"layout: {how}; expected tokens in the order of the text")
    length, devices = _length("layout", x, axis), int(devices)
    if documents is not None:
        if layout != "zigzag":
            raise ValueError(f"layout: documents go with layout 'zigzag' alone, got {layout!r}")
        documents = _documents("layout", documents)
        if len(documents) != length:
            raise ValueError(
                f"layout: documents has shape {documents.shape}, expected ({length},) as x has "
                f"{length} tokens along axis {axis}"
            )
    step = 2 * devices if layout == "zigzag" and documents is None else devices
    if length % step:
        raise ValueError(_indivisible("layout", layout, devices, length, step))
    if documents is None:
        positions = order(layout, devices, length)
    else:
        layout, positions = "given", order_of_documents(documents, devices)
    values = jax.tree.map(lambda leaf: _take(leaf, positions, axis), x)
    return LaidOut(values, positions, layout, devices, axis)


def unlayout(laid: LaidOut) -> Any:
    """The values in the order of the text."""
    if not isinstance(laid, LaidOut):
        raise TypeError(f"unlayout: got {type(laid).__name__}, expected the result of layout")
    length, expected = _length("unlayout", laid.values, laid.axis), len(laid.positions)
    if length != expected:
        raise ValueError(
            f"unlayout: values have {length} tokens along axis {laid.axis}, expected the "
            f"{expected} that were laid out as {laid.layout} over {laid.devices} devices"
        )
    if isinstance(laid.positions, jax.Array):
        back = jnp.argsort(laid.positions)
    else:
        back = inverse(laid.positions)
    return jax.tree.map(lambda leaf: _take(leaf, back, laid.axis), laid.values)


def _is_laid_out(x: Any) -> bool:
    return isinstance(x, LaidOut)


@on_any_mesh
def _take(x: Any, index: Any, axis: int) -> Any:
    if not isinstance(x, jax.Array) and not isinstance(index, jax.Array):
        return np.take(x, index, axis)
    return jnp.take(x, index, axis, mode="clip", unique_indices=True)


def _length(name: str, x: Any, axis: int) -> int:
    """The length along `axis` that all arrays have."""
    found: dict[int, str] = {}  # the first array of each length
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        at, shape = f"x{jax.tree_util.keystr(path)}", np.shape(leaf)
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"{name}: {at} has shape {shape}, expected an axis {axis} of tokens")
        found.setdefault(shape[axis], at)
    if not found:
        raise ValueError(f"{name}: x has no arrays, expected at least one")
    if len(found) > 1:
        (a, at_a), (b, at_b), *_ = found.items()
        raise ValueError(
            f"{name}: mismatched lengths along axis {axis}: {at_a} has {a}, {at_b} has {b}; "
            "expected one length (lay out queries and keys of different lengths apart)"
        )
    return next(iter(found))


def _indivisible(name: str, layout: str, devices: int, length: int, step: int) -> str:
    padded = -(-length // step) * step
    return (
        f"{name}: {length} tokens for {layout} over {devices} devices, expected a multiple of "
        f"{step}; pad to {padded}"
    )


def _documents(name: str, documents: Any) -> np.ndarray:
    """The ids, checked: on the host, since the layout of a program is fixed when it is traced."""
    if isinstance(documents, Tracer):
        raise TypeError(f"{name}: documents is traced, expected concrete ids such as a NumPy array")
    documents = np.asarray(documents)
    if documents.ndim != 1:
        raise ValueError(f"{name}: documents has shape {documents.shape}, expected (T,)")
    if not np.issubdtype(documents.dtype, np.integer):
        raise TypeError(f"{name}: documents has dtype {documents.dtype}, expected integers")
    ids = [documents[start] for start, _ in _runs_of(documents) if documents[start] >= 0]
    values, times = np.unique(ids, return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"{name}: documents has id {values[times > 1][0]} in {times[times > 1][0]} places, "
            "expected each document to be one run of neighbors"
        )
    return documents


def _runs_of(ids: np.ndarray) -> list[tuple[int, int]]:
    """Start and stop of each run of equal neighbors."""
    cuts = (np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist()
    return list(zip([0, *cuts], [*cuts, len(ids)], strict=True)) if len(ids) else []
