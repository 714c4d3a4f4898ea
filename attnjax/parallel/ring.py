"""Ring attention: keys and values walk from device to device, queries stay.

    hop h: device i holds the keys of device i - h, adds the tiles that its queries form with them
    to its state, and has sent them on before it began: sending and computing overlap

A state is (reference, sums, weighted values) in float32 and merges over any order of keys, so every
normalizer that runs blockwise runs here; one of several passes walks as often.  What rides with a
key (operands of mods, positions, whether it is a NaN) walks with it.  Gradients of keys walk one
hop behind them and then home.  Memory is O(T/P), forward and backward.

Papers: Liu et al., "Ring Attention", 2023, arXiv:2310.01889; Brandon et al., "Striped Attention",
2023, arXiv:2311.09431; the zigzag layout of zhuzilin's ring-flash-attention, 2024.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from attnjax.core import masks, normalizers
from attnjax.core.masks import EMPTY, Mask
from attnjax.core.masks.derived import HeadSlice, Inside
from attnjax.core.mods import group_of
from attnjax.core.normalizers import State
from attnjax.core.pairwise import tile_scan
from attnjax.core.pairwise.blockwise import Blockwise, stretch
from attnjax.core.pairwise.operands import token_axes
from attnjax.core.pairwise.request import Request, along_tokens
from attnjax.core.pairwise.tile_list import choose_blocks, tile_list, whole_groups
from attnjax.core.pairwise.tile_scan import Grads, Inputs, KeyShard
from attnjax.core.sharding import pvary_like
from attnjax.parallel.layouts import Layout, check_layout, run_starts, runs
from attnjax.parallel.tokens import Lengths, Shared, without_padding
from attnjax.parallel.wire import with_poison, without_poison
from attnjax.typing import Array

PAPERS = (53,)


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
    distant devices share nothing shortens the walk.  Reverse mode only.
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
    def tokens(self) -> Shared:
        return Shared("Ring", (self.axis,), self.layout, self.lengths)

    def supported(self, request: Request) -> str | None:
        return unsupported(request, self.tokens)

    def run(self, request: Request) -> Array:
        """The weighted sum of values for the queries here, (B,N,T,D)."""
        return normalizers.finish(request.normalizer, self.state(request))

    def state(self, request: Request) -> State:
        """What all keys leave behind for each query here."""
        return walk(request, self.tokens, self.inner or Blockwise())


def unsupported(request: Request, tokens: Shared) -> str | None:
    """The reason why a ring does not run the call, or None."""
    if request.selection is not None:
        return "blocks are selected from all keys: take AllGather"
    z, group = request.shape, group_of(request.mods)
    if tokens.layout == "given":
        missing = [n for n in ("q_positions", "k_positions") if getattr(request, n) is None]
        if missing:
            return f"layout 'given' without {' and '.join(missing)}"
        run = 1
    else:
        if tokens.layout == "zigzag" and (z.T % 2 or z.S % 2):
            return f"zigzag needs even numbers of tokens here, not T = {z.T}, S = {z.S}"
        run = z.S // runs(tokens.layout, tokens.size, z.S)
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


def hops_of(mask: Mask, tokens: Shared, T: int, S: int, known: bool) -> Hops:
    """The fewest hops that bring together every pair of devices whose tokens may attend.

    `known`: positions are those of the layout, so that this can be told while tracing.
    """
    P, known_mask = tokens.parts, outline(mask)
    if isinstance(known_mask, masks.Everything) or not known:
        return Hops(P - 1, 0)

    def ends(local: int) -> tuple[np.ndarray, np.ndarray]:
        if tokens.layout == "striped":
            first = np.arange(P, dtype=np.int32)
            return first, first + np.int32(P * (local - 1))
        starts = run_starts(tokens.layout, P, local).reshape(-1)
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


@dataclass(frozen=True)
class _Walk:
    """What is static about a walk."""

    tokens: Shared
    hops: Hops
    block_q: int
    block_k: int

    @property
    def axis(self) -> str:
        return self.tokens.axes[0]

    def shift(self, tree: Any, by: int) -> Any:
        """What the device `by` places before sent; nothing moves by zero places."""
        P = self.tokens.parts
        pairs = [(i, (i + by) % P) for i in range(P)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axis, pairs), tree) if by % P else tree


class _Keys(NamedTuple):
    """What walks: keys and values in the caller's dtype, key operands, positions if need be."""

    k: Array  # a row of NaN for a key whose k or v was not finite
    v: Array
    operands: tuple[tuple[Array | None, ...], ...]
    positions: Array | None


def walk(request: Request, tokens: Shared, inner: Blockwise) -> State:
    """The state of all keys, for the queries of this device."""
    z, P = request.shape, tokens.parts
    mask = without_padding(request, tokens)
    q_positions = request.q_positions
    followed = q_positions is None and request.k_positions is None
    if q_positions is None:
        q_positions = tokens.positions_of(lax.axis_index(tokens.axes), z.T)
    group = group_of(request.mods)
    count = 1 if tokens.layout in ("given", "striped") else runs(tokens.layout, P, z.S)
    run = replace(z, T=-(-z.T // count), S=-(-z.S // count))  # tiles should not span several
    block_q, block_k = choose_blocks(masks.everything, run, None, None, group)
    block_q = min(inner.block_q or block_q, z.T)
    block_k = whole_groups(min(inner.block_k or block_k, z.S), group)
    hops = hops_of(mask, tokens, z.T, z.S, followed)
    static = _Walk(tokens, hops, block_q, block_k)
    request = replace(request.scaled(), mask=mask, q_positions=q_positions)
    request = _padded(request, P, whole_groups(z.T, block_q), whole_groups(z.S, block_k))
    x, rest = tile_scan.split(request)
    index = lax.axis_index(static.axis)
    x, rest = pvary_like((x, rest), (x, rest, index))
    state = _ring(static, x, rest)
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


def _rides_with_keys(kind: str) -> bool:
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


def _packed(x: Inputs, rest: Request) -> _Keys:
    return _Keys(
        with_poison(x.k, rest.k_poison).astype(rest.dtype),
        x.v.astype(rest.dtype),
        _each(rest, lambda kind, a: a if _rides_with_keys(kind) else None, x.operands),
        rest.k_positions,
    )


def _part(static: _Walk, x: Inputs, rest: Request, keys: _Keys, source: Array) -> KeyShard:
    """The queries here with the keys of device `source`."""
    z = rest.shape
    dtype, S = x.q.dtype, keys.k.shape[2]
    k, k_poison = without_poison(keys.k.astype(dtype), z.N)

    def operand(kind: str, own: Array, walked: Array | None) -> Array:
        axis = _columns(kind, own)
        if axis is not None:
            own = lax.dynamic_slice_in_dim(own, source * S, S, axis)
        return own if walked is None else walked

    positions = keys.positions
    if positions is None:
        positions = static.tokens.positions_of(source, z.S)
        positions = stretch(positions, 0, S)
    at = None if rest.q_positions is None else rest.q_positions[: z.T]
    schedule = tile_list(rest.mask, z, static.block_q, static.block_k, at, positions[: z.S])
    x = x._replace(
        k=k,
        v=keys.v.astype(dtype),
        operands=_each(rest, operand, x.operands, keys.operands),
    )
    rest = replace(rest, k_positions=positions, k_poison=k_poison)
    return KeyShard(x, rest, (schedule,))


def _over(static: _Walk, x: Inputs, rest: Request) -> tile_scan.KeyFold:
    """All keys, hop by hop."""
    own = _packed(x, rest)
    index = lax.axis_index(static.axis)

    def fold(visit, carry):
        carry = pvary_like(carry, (x, rest, index))

        def along(carry: Any, keys: _Keys, first: int, last: int, by: int) -> Any:
            """Visits at hops first .. last, keys moving `by` places from one to the next."""

            def hop(carried, h):
                carry, keys = carried
                following = static.shift(keys, by)  # on its way while the tiles are computed
                part = _part(static, x, rest, keys, (index - by * h) % static.tokens.parts)
                return (visit(part, carry), following), None

            hops = jnp.arange(first, last, dtype=jnp.int32)
            if first < last:
                (carry, keys), _ = lax.scan(hop, (carry, keys), hops)
            part = _part(static, x, rest, keys, (index - by * last) % static.tokens.parts)
            return visit(part, carry)

        carry = along(carry, own, 0, static.hops.ahead, 1)
        if static.hops.behind:
            carry = along(carry, static.shift(own, -1), 1, static.hops.behind, -1)
        return carry

    return fold


def _over_back(static: _Walk, x: Inputs, rest: Request) -> tile_scan.KeyFold:
    """All keys, hop by hop, with their gradients one hop behind."""
    own = _packed(x, rest)
    index = lax.axis_index(static.axis)

    def of_keys(grads: Grads) -> Any:
        walked = lambda kind, d: d if _rides_with_keys(kind) else None
        return grads.kT, grads.vT, _each(rest, walked, grads.operands)

    def at_hop(visit, carry, keys: _Keys, source: Array):
        """The gradients kept here, and those of the keys at hand."""
        part = _part(static, x, rest, keys, source)
        S = keys.k.shape[2]

        def start(kind: str, d: Array) -> Array:
            if _rides_with_keys(kind):
                return jnp.zeros_like(d)
            axis = _columns(kind, d)
            return d if axis is None else lax.dynamic_slice_in_dim(d, source * S, S, axis)

        def end(kind: str, d: Array, new: Array) -> Array:
            if _rides_with_keys(kind):
                return d
            axis = _columns(kind, d)
            if axis is None:
                return new
            return lax.dynamic_update_slice_in_dim(d, new, source * S, axis)

        zeros = jax.tree.map(jnp.zeros_like, (carry.kT, carry.vT))
        before = carry._replace(
            kT=zeros[0], vT=zeros[1], operands=_each(rest, start, carry.operands)
        )
        before = pvary_like(before, (x, rest, index))
        after = visit(part, before)
        kept = after._replace(
            kT=carry.kT, vT=carry.vT, operands=_each(rest, end, carry.operands, after.operands)
        )
        return kept, of_keys(after)

    def fold(visit, grads: Grads) -> Grads:
        add = functools.partial(jax.tree.map, jnp.add)
        grads = pvary_like(grads, (x, rest, index))

        def along(grads: Grads, keys: _Keys, walking: Any, first: int, last: int, by: int):
            def hop(carried, h):
                grads, keys, walking = carried
                following = static.shift(keys, by)
                arrived = static.shift(walking, by)
                source = (index - by * h) % static.tokens.parts
                grads, more = at_hop(visit, grads, keys, source)
                return (grads, following, add(arrived, more)), None

            hops = jnp.arange(first, last, dtype=jnp.int32)
            if first < last:
                (grads, keys, walking), _ = lax.scan(hop, (grads, keys, walking), hops)
            arrived = static.shift(walking, by)
            source = (index - by * last) % static.tokens.parts
            grads, more = at_hop(visit, grads, keys, source)
            return grads, static.shift(add(arrived, more), -by * last)

        nothing = of_keys(grads)  # zeros
        grads, home = at_hop(visit, grads, own, index)
        if static.hops.ahead:
            keys = static.shift(own, 1)
            grads, home = along(grads, keys, home, 1, static.hops.ahead, 1)
        if static.hops.behind:
            keys = static.shift(own, -1)
            grads, more = along(grads, keys, nothing, 1, static.hops.behind, -1)
            home = add(home, more)
        ours = lambda kind, d, came: came if _rides_with_keys(kind) else d
        return grads._replace(
            kT=home[0], vT=home[1], operands=_each(rest, ours, grads.operands, home[2])
        )

    return fold


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(static: _Walk, x: Inputs, rest: Request) -> State:
    return _ring_fwd(static, x, rest)[0]


def _ring_fwd(static: _Walk, x: Inputs, rest: Request):
    state, saved = tile_scan.forward(x, rest, _over(static, x, rest))
    return state, (x, rest, saved)


def _ring_bwd(static: _Walk, residuals, cotangents: State):
    x, rest, saved = residuals
    over, back = _over(static, x, rest), _over_back(static, x, rest)
    return tile_scan.backward(x, rest, saved, cotangents, over, back), None


_ring.defvjp(_ring_fwd, _ring_bwd)
