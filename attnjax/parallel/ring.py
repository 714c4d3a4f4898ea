"""Ring attention: keys and values walk from device to device, queries stay.

    hop h: device i holds the keys of device i - h, adds the tiles that its queries form with them
    to its state, and has sent them on before it began: sending and computing overlap

A state is (reference, sums, weighted values) in float32 and merges over any order of keys, so every
normalizer that runs blockwise runs here; one of several passes walks as often.  What belongs to a
key (operands of mods, positions, whether it is a NaN) walks with it.  Gradients of keys walk one
hop behind them and then home.  Memory is O(T/P), forward and backward.

Papers: Liu et al., "Ring Attention", 2023, arXiv:2310.01889; Brandon et al., "Striped Attention",
2023, arXiv:2311.09431; the zigzag layout of zhuzilin's ring-flash-attention, 2024.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from attnjax.core import masks, normalizers
from attnjax.core.derive import Derived
from attnjax.core.masks import EMPTY, Mask
from attnjax.core.masks.derived import HeadSlice, Inside
from attnjax.core.mods import group_of
from attnjax.core.normalizers import State
from attnjax.core.pairwise import tile_gradients, tile_scan
from attnjax.core.pairwise.blockwise import Blockwise, stretch
from attnjax.core.pairwise.operands import token_axes
from attnjax.core.pairwise.request import Request, along_tokens
from attnjax.core.pairwise.tile_gradients import Grads
from attnjax.core.pairwise.tile_list import choose_blocks, tile_list, whole_groups
from attnjax.core.pairwise.tile_scan import Inputs, KeyShard, Saved
from attnjax.core.sharding import pvary_like
from attnjax.parallel.layouts import Layout, check_layout, run_starts, runs
from attnjax.parallel.tokens import LayoutSharding, Lengths, without_padding
from attnjax.parallel.wire import with_poison, without_poison
from attnjax.typing import Array

PAPERS = (53,)

Carry = TypeVar("Carry")


@dataclass(frozen=True)
class Ring:
    """An implementation for use inside `jax.shard_map`: `attend(..., impl=Ring("sp", "zigzag"))`.

    axis      mesh axis over which queries and keys are split, T/P and S/P on each device
    layout    which tokens a device has: "contiguous", "zigzag" or "striped", or "given": any, told
              by q_positions and k_positions
    inner     a `Blockwise` whose tile sizes are taken; None chooses them
    lengths   (T, S) where the last tokens are padding; None: P times what is here

    q, k, v and operands of queries and keys are this device's; operands of pairs are (B,N,T/P,S),
    columns in layout order; masks are those of the whole sequence.  A mask or layout under which
    distant devices share nothing shortens the walk.
    """

    axis: str
    layout: Layout = "contiguous"
    inner: Blockwise | None = None
    lengths: Lengths | None = None

    def __post_init__(self) -> None:
        check_layout("Ring", self.layout)
        if self.inner is not None and not isinstance(self.inner, Blockwise):
            raise TypeError(f"Ring: inner is {self.inner!r}, expected None or a Blockwise")

    @property
    def sharding(self) -> LayoutSharding:
        return LayoutSharding("Ring", (self.axis,), self.layout, self.lengths)

    def supported(self, request: Request) -> str | None:
        return unsupported(request, self.sharding)

    def run(self, request: Request) -> Array:
        """The weighted sum of values for the queries here, (B,N,T,D)."""
        return normalizers.finish(request.normalizer, self.state(request))

    def state(self, request: Request) -> State:
        """What all keys leave behind for each query here."""
        return walk(request, self.sharding, self.inner or Blockwise())


def unsupported(request: Request, sharding: LayoutSharding) -> str | None:
    """The reason why a ring does not run the call, or None."""
    if request.selection is not None:
        return "blocks are selected from all keys: take AllGather"
    if request.differs_by_example:
        return "positions of each example: take AllGather or Ulysses"
    z, group = request.shape, group_of(request.mods)
    if sharding.layout == "given":
        missing = [n for n in ("q_positions", "k_positions") if getattr(request, n) is None]
        if missing:
            return f"layout 'given' without {' and '.join(missing)}"
        run = 1
    else:
        if sharding.layout == "zigzag" and (z.T % 2 or z.S % 2):
            return f"zigzag needs even numbers of tokens here, not T = {z.T}, S = {z.S}"
        run = z.S // runs(sharding.layout, sharding.size, z.S)
    if run % group:
        return f"mods look at {group} neighboring keys, and {run} of them stay together"
    return None


# ------------------------------------------------------------------------------- which hops


class Hops(NamedTuple):
    """How far keys walk: `ahead` hops to the next device, and `behind` hops to the one before."""

    ahead: int
    behind: int


def outline(mask: Mask) -> Mask:
    """A mask that allows whatever `mask` may, of the parts known while tracing."""
    if isinstance(mask, masks.And):
        return outline(mask.a) & outline(mask.b)
    if isinstance(mask, HeadSlice):
        return outline(mask.mask)
    if isinstance(mask, Inside):
        return replace(mask, mask=outline(mask.mask))
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(mask))
    return masks.everything if traced else mask


def hops_of(mask: Mask, sharding: LayoutSharding, T: int, S: int, known: bool) -> Hops:
    """The fewest hops that bring together every pair of devices whose tokens may attend.

    `known`: positions are those of the layout, so that this can be told while tracing.
    """
    P, known_mask = sharding.parts, outline(mask)
    if isinstance(known_mask, masks.Everything) or not known:
        return Hops(P - 1, 0)

    def ends(local: int) -> tuple[np.ndarray, np.ndarray]:
        if sharding.layout == "striped":
            first = np.arange(P, dtype=np.int32)
            return first, first + np.int32(P * (local - 1))
        starts = run_starts(sharding.layout, P, local).reshape(-1)
        return starts, starts + np.int32(local * P // len(starts) - 1)

    (q_lo, q_hi), (k_lo, k_hi) = ends(T), ends(S)
    kinds = known_mask.classify(q_lo[:, None], q_hi[:, None], k_lo[None], k_hi[None])
    seen = np.broadcast_to(kinds, (*kinds.shape[:-2], len(q_lo), len(k_lo))) != EMPTY
    seen = seen.reshape(-1, P, len(q_lo) // P, P, len(k_lo) // P).any((0, 2, 4))
    i, j = np.nonzero(seen)
    needed = np.unique((i - j) % P)
    cuts = [0, *needed]  # the last hop ahead; everything further comes from behind
    walks = [Hops(int(a), int(max((P - n for n in needed if n > a), default=0))) for a in cuts]
    return min(walks, key=lambda walk: (sum(walk), walk.behind))


# ---------------------------------------------------------------------------------- the walk


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Walk:
    """What is static about a walk."""

    sharding: LayoutSharding
    hops: Hops
    block_q: int
    block_k: int

    @property
    def axis(self) -> str:
        return self.sharding.axes[0]

    def shift(self, tree: Any, by: int) -> Any:
        """What the device `by` places before sent; nothing moves by zero places."""
        P = self.sharding.parts
        pairs = [(i, (i + by) % P) for i in range(P)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axis, pairs), tree) if by % P else tree

    def scan(
        self,
        visit: Callable[[Carry, "_Keys", Array], Carry],
        carry: Carry,
        own: "_Keys",
        hops: range,
        by: int,
    ) -> Carry:
        """visit(carry, keys, whose) at each of the hops, of keys that move `by` places a hop.

        `own` are the keys of this device.
        """
        index = lax.axis_index(self.axis)
        whose = lambda hop: (index - by * hop) % self.sharding.parts
        *before, last = hops

        def visit_and_send(carried: tuple[Carry, _Keys], hop: Array) -> Any:
            carry, keys = carried
            following = self.shift(keys, by)  # on its way while the tiles are computed
            return (visit(carry, keys, whose(hop)), following), None

        keys = self.shift(own, by * hops.start)
        if before:
            numbers = jnp.asarray(before, jnp.int32)
            (carry, keys), _ = lax.scan(visit_and_send, (carry, keys), numbers)
        return visit(carry, keys, whose(last))


class _Keys(NamedTuple):
    """What walks: keys and values in the caller's dtype, key operands, positions if need be."""

    k: Array  # a row of NaN for a key whose k or v was not finite
    v: Array
    operands: tuple[tuple[Array | None, ...], ...]
    positions: Array | None


def walk(request: Request, sharding: LayoutSharding, inner: Blockwise) -> State:
    """The state of all keys, for the queries of this device."""
    z, P = request.shape, sharding.parts
    mask = without_padding(request, sharding)
    q_positions = request.q_positions
    known_positions = q_positions is None and request.k_positions is None
    if q_positions is None:
        q_positions = sharding.positions_of(lax.axis_index(sharding.axes), z.T)
    group = group_of(request.mods)
    count = 1 if sharding.layout in ("given", "striped") else runs(sharding.layout, P, z.S)
    run = replace(z, T=-(-z.T // count), S=-(-z.S // count))  # tiles should not span several
    block_q, block_k = choose_blocks(masks.everything, run, None, None, group)
    block_q = min(inner.block_q or block_q, z.T)
    block_k = whole_groups(min(inner.block_k or block_k, z.S), group)
    hops = hops_of(mask, sharding, z.T, z.S, known_positions)
    static = _Walk(sharding, hops, block_q, block_k)
    request = replace(request.scaled(), mask=mask, q_positions=q_positions)
    request = _padded(request, P, whole_groups(z.T, block_q), whole_groups(z.S, block_k))
    x, rest = tile_scan.split(request)
    index = lax.axis_index(static.axis)
    x, rest = pvary_like((x, rest), (x, rest, index))
    state = _ring(x, _Rest(static, rest))
    return jax.tree.map(lambda a: a[..., : z.T, :], state)


def _padded(request: Request, P: int, T: int, S: int) -> Request:
    """Whole tiles on each device; the columns of a pair operand part by part."""
    z = request.shape

    def on_k(x: Array, axis: int) -> Array:
        if x.shape[axis] == z.S:
            return stretch(x, axis, S)
        parts = x.reshape(*x.shape[:axis], P, z.S, *x.shape[axis + 1 :])
        return stretch(parts, axis + 1, S).reshape(*x.shape[:axis], P * S, *x.shape[axis + 1 :])

    return along_tokens(request, lambda x, axis: stretch(x, axis, T), on_k)


def _is_per_key(kind: str) -> bool:
    return kind.startswith("key")


def _each(rest: Request, fn, *trees: Any) -> tuple[tuple[Any, ...], ...]:
    """fn(kind, operand of each tree) for all operands of all mods."""
    return tuple(
        tuple(map(fn, mod.kinds, *operands))
        for mod, *operands in zip(rest.mods, *trees, strict=True)
    )


def _columns(kind: str, x: Array) -> int | None:
    """The axis of a pair operand that has columns for all keys, or None."""
    return token_axes(kind, x)[1] if kind == "pair" else None


def _columns_of(kind: str, x: Array, source: Array, S: int) -> Array:
    """The columns of an operand for the keys of one device; all of it, where it has none."""
    axis = _columns(kind, x)
    return x if axis is None else lax.dynamic_slice_in_dim(x, source * S, S, axis)


def _packed(x: Inputs, rest: Request) -> _Keys:
    return _Keys(
        with_poison(x.k, rest.k_poison).astype(rest.dtype),
        x.v.astype(rest.dtype),
        _each(rest, lambda kind, a: a if _is_per_key(kind) else None, x.operands),
        rest.k_positions,
    )


def _key_shard(static: _Walk, x: Inputs, rest: Request, keys: _Keys, source: Array) -> KeyShard:
    """The queries here with the keys of device `source`."""
    z = rest.shape
    dtype, S = x.q.dtype, keys.k.shape[2]
    k, k_poison = without_poison(keys.k.astype(dtype), z.N)

    def operand(kind: str, own: Array, walked: Array | None) -> Array:
        return _columns_of(kind, own, source, S) if walked is None else walked

    positions = keys.positions
    if positions is None:
        positions = static.sharding.positions_of(source, z.S)
        positions = stretch(positions, 0, S)
    q_positions = None if rest.q_positions is None else rest.q_positions[: z.T]
    schedule = tile_list(
        rest.mask, z, static.block_q, static.block_k, q_positions, positions[: z.S]
    )
    x = x._replace(
        k=k,
        v=keys.v.astype(dtype),
        operands=_each(rest, operand, x.operands, keys.operands),
    )
    rest = replace(rest, k_positions=positions, k_poison=k_poison)
    return KeyShard(x, rest, (schedule,))


def _over_keys(static: _Walk, x: Inputs, rest: Request) -> tile_scan.KeyFold:
    """All keys, hop by hop."""
    own = _packed(x, rest)

    def fold(visit: Callable[[KeyShard, Any], Any], carry: Any) -> Any:
        carry = pvary_like(carry, (x, rest, lax.axis_index(static.axis)))
        visit_keys = lambda carry, keys, whose: visit(
            _key_shard(static, x, rest, keys, whose), carry
        )
        carry = static.scan(visit_keys, carry, own, range(static.hops.ahead + 1), 1)
        if static.hops.behind:
            carry = static.scan(visit_keys, carry, own, range(1, static.hops.behind + 1), -1)
        return carry

    return fold


def _over_keys_and_gradients(static: _Walk, x: Inputs, rest: Request) -> tile_scan.KeyFold:
    """All keys, hop by hop, with their gradients one hop behind."""
    own = _packed(x, rest)
    index = lax.axis_index(static.axis)

    def fold(visit: Callable[[KeyShard, Grads], Grads], grads: Grads) -> Grads:
        visit_keys = functools.partial(_visit_with_gradients, static, x, rest, visit)

        def visit_and_add(by: int, carry: Any, keys: _Keys, whose: Array) -> Any:
            grads, walking = carry
            arrived = static.shift(walking, by)
            grads, more = visit_keys(grads, keys, whose)
            return grads, _add(arrived, more)

        def walk_there_and_back(by: int, hops: int, grads: Grads, walking: Any) -> Any:
            hop = functools.partial(visit_and_add, by)
            grads, walking = static.scan(hop, (grads, walking), own, range(1, hops + 1), by)
            return grads, static.shift(walking, -by * hops)

        grads = pvary_like(grads, (x, rest, index))
        nothing = _of_keys(rest, grads)  # zeros
        grads, home = visit_keys(grads, own, index)
        if static.hops.ahead:
            grads, home = walk_there_and_back(1, static.hops.ahead, grads, home)
        if static.hops.behind:
            grads, more = walk_there_and_back(-1, static.hops.behind, grads, nothing)
            home = _add(home, more)
        kT, vT, operands = home
        ours = lambda kind, d, came: came if _is_per_key(kind) else d
        return grads._replace(kT=kT, vT=vT, operands=_each(rest, ours, grads.operands, operands))

    return fold


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _of_keys(rest: Request, grads: Grads) -> tuple[Array, Array, Any]:
    """The gradients that walk behind their keys."""
    walking = lambda kind, d: d if _is_per_key(kind) else None
    return grads.kT, grads.vT, _each(rest, walking, grads.operands)


def _visit_with_gradients(
    static: _Walk,
    x: Inputs,
    rest: Request,
    visit: Callable[[KeyShard, Grads], Grads],
    grads: Grads,
    keys: _Keys,
    source: Array,
) -> tuple[Grads, Any]:
    """The gradients kept here, after the keys of device `source`, and those of these keys."""
    S = keys.k.shape[2]

    def start(kind: str, d: Array) -> Array:
        return jnp.zeros_like(d) if _is_per_key(kind) else _columns_of(kind, d, source, S)

    def end(kind: str, d: Array, new: Array) -> Array:
        if _is_per_key(kind):
            return d
        axis = _columns(kind, d)
        if axis is None:
            return new
        return lax.dynamic_update_slice_in_dim(d, new, source * S, axis)

    before = grads._replace(
        kT=jnp.zeros_like(grads.kT),
        vT=jnp.zeros_like(grads.vT),
        operands=_each(rest, start, grads.operands),
    )
    before = pvary_like(before, (x, rest, lax.axis_index(static.axis)))
    after = visit(_key_shard(static, x, rest, keys, source), before)
    kept = after._replace(
        kT=grads.kT, vT=grads.vT, operands=_each(rest, end, grads.operands, after.operands)
    )
    return kept, _of_keys(rest, after)


class _Rest(NamedTuple):
    """What no derivative is taken by."""

    walk: _Walk
    request: Request


def _forward(x: Inputs, rest: _Rest) -> tuple[State, Saved]:
    return tile_scan.forward(x, rest.request, _over_keys(rest.walk, x, rest.request))


def _backward(x: Inputs, rest: _Rest, saved: Saved, cotangents: State) -> Inputs:
    static, request = rest
    fold, fold_back = _over_keys(static, x, request), _over_keys_and_gradients(static, x, request)
    return tile_gradients.backward(x, request, saved, cotangents, fold, fold_back)


def _again(x: Inputs, rest: _Rest, saved: Saved) -> State:
    return tile_scan.again(x, rest.request, saved, _over_keys(rest.walk, x, rest.request))


_ring = Derived(_forward, _backward, _again)
