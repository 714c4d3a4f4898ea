"""Ulysses: an exchange of heads for tokens, attention over all tokens for a share of the heads.

    q (B,T/P,N,H) -> (B,T,N/P,H), attend, back: four exchanges, each of 1/P of what is here

Paper: Jacobs et al., "DeepSpeed Ulysses", 2023, arXiv:2309.14509.  USP exchanges over one axis of
the mesh and walks around a ring over the other: Fang and Zhao, 2024, arXiv:2405.07719.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import normalizers
from attnjax.core.dispatch import Impl
from attnjax.core.masks import Mask
from attnjax.core.masks.derived import HeadSlice
from attnjax.core.normalizers import State
from attnjax.core.numerics import clean
from attnjax.core.pairwise.attend import choose, choose_state
from attnjax.core.pairwise.blockwise import Blockwise
from attnjax.core.pairwise.operands import token_axes
from attnjax.core.pairwise.request import OnTokens, Request, along_tokens
from attnjax.parallel import ring
from attnjax.parallel.layouts import Layout, check_layout
from attnjax.parallel.tokens import LayoutSharding, Lengths, axis_size
from attnjax.parallel.wire import sent, with_poison, without_poison
from attnjax.typing import Array

PAPERS = (53,)


@dataclass(frozen=True)
class Ulysses:
    """An implementation for use inside `jax.shard_map`: `attend(..., impl=Ulysses("sp"))`.

    axis      mesh axis over which tokens are split; P must divide N.  Where it does not divide K,
              key heads are repeated first
    layout    which tokens a device has: "contiguous", "zigzag" or "striped"
    inner     what runs on the heads of a device, as `impl` of `attend`
    lengths   (T, S) where the last tokens are padding; None: P times what is here

    Arguments as for `Ring`.  Every mod, mask, normalizer and derivative that `inner` has.
    """

    axis: str
    layout: Layout = "contiguous"
    inner: Impl = None
    lengths: Lengths | None = None

    def __post_init__(self) -> None:
        check_layout("Ulysses", self.layout)

    @property
    def sharding(self) -> LayoutSharding:
        return LayoutSharding("Ulysses", (self.axis,), self.layout, self.lengths)

    def supported(self, request: Request) -> str | None:
        if self.layout == "given":
            return "layout 'given': heads see all tokens in the order of the text, take Ring"
        return unsupported(
            request, self.sharding.size, f"Ring({self.axis!r}) or AllGather({self.axis!r})"
        )

    def run(self, request: Request) -> Array:
        """The weighted sum of values for the queries here, (B,N,T,D)."""
        inside = self._exchanged(request)
        out = choose("attend", self.inner, inside).run(inside).astype(request.dtype)
        return self._back(out, request.shape.T * self.sharding.size)

    def state(self, request: Request) -> State:
        """What all keys leave behind for each query here."""
        inside = self._exchanged(request)
        state = choose_state("attend_state", self.inner, inside).state(inside)
        return jax.tree.map(lambda x: self._back(x, request.shape.T * self.sharding.size), state)

    def _exchanged(self, request: Request) -> Request:
        sharding = self.sharding
        T, S = sharding.lengths(request.shape.T, request.shape.S)

        def real(length: int) -> OnTokens:
            cut = lambda x, axis: lax.slice_in_dim(x, 0, length, axis=axis)
            return lambda x, axis: cut(sharding.in_text_order(x, axis), axis)

        inside = along_tokens(exchanged(request, self.axis, sharding.size), real(T), real(S))
        return replace(inside, shape=replace(inside.shape, T=T, S=S))

    def _back(self, x: Array, padded: int) -> Array:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, padded - x.shape[2]), (0, 0)))
        return returned(self.sharding.in_layout_order(x, 2), self.axis)


@dataclass(frozen=True)
class USP:
    """Ulysses over `head_axis`, a ring over `ring_axis`: tokens are split over both, ring first.

    With a layout, device r of the ring and its group of `head_axis` hold part r of it, each a U-th.
    The other fields are those of `Ring`; U = size of head_axis must divide N.
    """

    ring_axis: str
    head_axis: str
    layout: Layout = "contiguous"
    inner: Blockwise | None = None
    lengths: Lengths | None = None

    def __post_init__(self) -> None:
        check_layout("USP", self.layout)
        if self.ring_axis == self.head_axis:
            raise ValueError(f"USP: both axes are {self.ring_axis!r}, expected two of the mesh's")

    @property
    def sharding(self) -> LayoutSharding:
        axes = self.ring_axis, self.head_axis
        return LayoutSharding("USP", axes, self.layout, self.lengths, within=1)

    @property
    def _ring(self) -> LayoutSharding:
        return LayoutSharding("USP", (self.ring_axis,), self.layout, self.lengths)

    def supported(self, request: Request) -> str | None:
        if self.layout == "given":
            return "layout 'given': take Ring over both axes"
        U = axis_size("USP", self.head_axis)
        if why := unsupported(request, U, f"Ring({self.ring_axis!r})"):
            return why
        z = request.shape
        return ring.unsupported(
            replace(request, shape=replace(z, T=z.T * U, S=z.S * U)), self._ring
        )

    def run(self, request: Request) -> Array:
        """The weighted sum of values for the queries here, (B,N,T,D)."""
        inside = exchanged(request, self.head_axis, axis_size("USP", self.head_axis))
        out = normalizers.finish(inside.normalizer, self._walk(inside)).astype(request.dtype)
        return returned(out, self.head_axis)

    def state(self, request: Request) -> State:
        """What all keys leave behind for each query here."""
        inside = exchanged(request, self.head_axis, axis_size("USP", self.head_axis))
        return jax.tree.map(lambda x: returned(x, self.head_axis), self._walk(inside))

    def _walk(self, inside: Request) -> State:
        return ring.walk(inside, self._ring, self.inner or Blockwise())


def unsupported(request: Request, P: int, instead: str) -> str | None:
    """The reason why heads cannot be exchanged for tokens among P devices, or None."""
    z = request.shape
    if request.selection is not None:
        return "blocks are selected from all keys: take AllGather"
    if z.N % P:
        return f"N = {z.N} heads cannot be shared by {P} devices; {instead} can run it"
    if z.T == 1 and any(kind == "pair" for mod in request.mods for kind in mod.kinds):
        return "one query here: rows of a pair operand cannot be told from one row for all"
    return None


# ------------------------------------------------------------------------------ the exchange


def exchanged(request: Request, axis: str, P: int) -> Request:
    """The call with the tokens of all P devices, device by device, and 1/P of the heads."""
    z = request.shape
    repeat = P // math.gcd(z.K, P)
    index = lax.axis_index(axis)
    swap = lambda x, head, token: _swapped(x, axis, P, head, token)

    def thin(x: Array, dtype: jnp.dtype = request.dtype) -> Array:
        return sent(lambda x: swap(x, 1, 2), dtype, x)

    def of_keys(x: Array) -> Array:
        return thin(jnp.repeat(x, repeat, axis=1) if repeat > 1 else x)

    def operand(kind: str, x: Array) -> Array:
        t, s = token_axes(kind, x)
        token = s if kind.startswith("key") else t
        return swap(x, 2 if kind.endswith("features") else 1, token)

    gather = lambda x: None if x is None else lax.all_gather(x, axis, axis=x.ndim - 1, tiled=True)
    exact = request.q.dtype if request.scale is None else request.dtype
    q, q_bad = clean(thin(request.q + request.q_poison, exact))
    k, k_poison = without_poison(of_keys(with_poison(request.k, request.k_poison)), z.N // P)
    return replace(
        request,
        q=q,
        k=k,
        v=of_keys(request.v),
        mods=tuple(
            replace(m, operands=tuple(map(operand, m.kinds, m.operands))) for m in request.mods
        ),
        normalizer=jax.tree.map(lambda p: swap(p, 1, None), request.normalizer),
        dropout=jax.tree.map(lambda x: swap(x, 1, None), request.dropout),
        mask=_of_heads(request.mask, index * (z.N // P), z.N // P),
        q_positions=gather(request.q_positions),
        k_positions=gather(request.k_positions),
        q_poison=q_bad[..., None].astype(q.dtype),
        k_poison=k_poison,
        shape=replace(z, T=z.T * P, S=z.S * P, N=z.N // P, K=k.shape[1]),
    )


def _of_heads(mask: Mask, first: Array, count: int) -> Mask:
    """The mask of so many heads; itself where all heads have the same."""
    at = np.zeros((1, 1), np.int32)
    shape = jax.eval_shape(lambda: jnp.asarray(mask.allowed(at, at))).shape
    return HeadSlice(mask, None, first, count) if len(shape) == 4 and shape[1] > 1 else mask


def _swapped(x: Array, axis: str, P: int, head: int, token: int | None) -> Array:
    """Heads shared out and tokens put together, as far as x has either."""
    if x.shape[head] == 1:
        return x if token is None else lax.all_gather(x, axis, axis=token, tiled=True)
    if token is not None:
        return lax.all_to_all(x, axis, split_axis=head, concat_axis=token, tiled=True)
    size = x.shape[head] // P
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axis) * size, size, head)


def returned(x: Array, axis: str) -> Array:
    """Rows (B,N/P,T,...) of all tokens as (B,N,T/P,...) of all heads."""
    return lax.all_to_all(x, axis, split_axis=2, concat_axis=1, tiled=True)
