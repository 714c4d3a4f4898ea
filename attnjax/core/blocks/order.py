"""Tokens in another order: clusters, buckets of a hash, samples of keys."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.blocks.runs import mask_of_tokens
from attnjax.core.chunks import cut
from attnjax.core.masks import Mask, prefix
from attnjax.core.numerics import divide, finite
from attnjax.typing import Array, Float, Int

# --------------------------------------------------- tokens in another order: clusters, buckets


def clusters(scores: Float[Array, "B X c T"], size: int) -> Int[Array, "B places X"]:
    """Balanced clusters: the `size` tokens of largest score of each, in their order in the text.

    (B, c * size, X) token numbers, cluster behind cluster, for `take_tokens`.  A token may lie in
    several clusters, or in none.
    """
    B, X, c, T = scores.shape
    if not 1 <= size <= T:
        raise ValueError(f"clusters: size is {size}, expected an integer from 1 to T = {T}")
    members = jnp.sort(lax.top_k(lax.stop_gradient(scores), size)[1], axis=-1)
    return jnp.moveaxis(members.reshape(B, X, c * size), 1, 2).astype(jnp.int32)


def bucket_order(codes: Int[Array, "B T X"]) -> Int[Array, "B T X"]:
    """The order of tokens by bucket, and in a bucket by place: equal codes become neighbors."""
    return jnp.argsort(codes, axis=1, stable=True).astype(jnp.int32)


def take_tokens(x: Float[Array, "B T N H"], order: Int[Array, "B t X"]) -> Array:
    """Tokens in the order of each head: (B,T,N,H), (B,t,X) -> (B,t,N,H), N a multiple of X."""
    N, X = x.shape[2], order.shape[2]
    if N % X:
        raise ValueError(f"take_tokens: x has {N} heads, expected a multiple of order's X = {X}")
    at = jnp.repeat(order, N // X, axis=2) if X > 1 else order
    return jnp.take_along_axis(x, at[..., None], axis=1)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["order"], meta_fields=["size", "length", "full"]
)
@dataclass(frozen=True)
class BlockOrder:
    """Tokens of a sequence in another order, cut into blocks, some of which may not be full.

    order    (t,) or (B,t,X) integers: which token stands where; `length` where there is none
    size     length of a block; the last may be shorter
    length   of the sequence
    full     whether every place is known to have a token

    A token may stand at several places, or at none.  `attend` takes `take(k)`, `take(v)` with
    `k_positions=positions(X)` and `mask=seen(mask, T)`: masks and mods then see the tokens where
    they stand in the sequence, and places without a token are seen by nobody.
    """

    order: Array | np.ndarray
    size: int
    length: int
    full: bool = False

    @property
    def filled(self) -> Array | np.ndarray:
        """Which places have a token, booleans like `order`."""
        return self.order < self.length

    def take(self, x: Float[Array, "B S N H"]) -> Float[Array, "B t N H"]:
        """The tokens in this order; those of places without one are arbitrary."""
        at = np.minimum(self.order, self.length - 1) if self.order.ndim == 1 else self.order
        return x[:, at] if at.ndim == 1 else take_tokens(x, jnp.minimum(at, self.length - 1))

    def means(self, x: Float[Array, "B S N H"]) -> Float[Array, "B n N H"]:
        """The mean over the tokens that each block has; zeros for NaN and infinities, and wide."""
        taken, there = finite(self.take(x)), self.filled
        there = there[None, :, None] if there.ndim == 1 else there
        there = jnp.repeat(there, taken.shape[2] // there.shape[2], axis=2)[..., None]
        sums = lambda x: cut(x, self.size).sum(2)
        return divide(sums(jnp.where(there, taken, 0.0)), sums(there.astype(taken.dtype)))

    def positions(self, heads: int) -> Any:
        """`q_positions` or `k_positions` for a selection of so many heads."""
        if self.order.ndim == 1 or self.order.shape[2] == heads:
            return self.order
        return jnp.repeat(self.order, heads // self.order.shape[2], axis=2)

    def seen(self, mask: Mask, T: int) -> Mask:
        """A mask of T queries and `length` keys, for keys in this order: it hides empty places."""
        seen = mask_of_tokens(mask, T, self.length)
        return seen if self.full else seen & prefix(self.length)

    def restored(self, x: Float[Array, "B t N D"]) -> Float[Array, "B S N D"]:
        """Results of the tokens as they stand in the sequence.

        The mean over the places of a token, zero for a token without any.
        """
        at = jnp.arange(len(x))[:, None, None], self.positions(x.shape[2]), jnp.arange(x.shape[2])
        at = at if self.order.ndim == 3 else (slice(None), self.order)
        shape = len(x), self.length, x.shape[2]
        sums = lambda x: jnp.zeros((*shape, x.shape[-1]), x.dtype).at[at].add(x, mode="drop")
        return sums(x) / jnp.maximum(sums(jnp.ones_like(x[..., :1])), 1)


def grid_blocks(shape: Sequence[int], block: Sequence[int]) -> BlockOrder:
    """The cells of a row-major grid, block behind block; those at its ends may not be full."""
    if len(block) != len(shape) or min(block) < 1:
        raise ValueError(f"block: {tuple(block)}; expected {len(shape)} positive lengths")
    padded = [-(-n // b) * b for n, b in zip(shape, block, strict=True)]
    cells = np.full(padded, math.prod(shape), np.int32)
    cells[tuple(slice(n) for n in shape)] = np.arange(math.prod(shape)).reshape(shape)
    split = [x for n, b in zip(padded, block, strict=True) for x in (n // b, b)]
    axes = range(2 * len(block))
    order = cells.reshape(split).transpose(*axes[::2], *axes[1::2]).reshape(-1)
    full = len(order) == math.prod(shape)
    return BlockOrder(order, math.prod(block), math.prod(shape), full)


# --------------------------------------------------------------------------- hashing, sampling


def gray_codes(x: Array, planes: Array) -> Array:
    """The bucket of each token of x (B,T,N,H), 0 .. 2^R - 1, for planes (H,R) through the origin.

    The sides of the planes are a Gray code, its place the bucket: neighbors differ in one side.
    """
    if planes.ndim != 2 or len(planes) != x.shape[-1] or planes.shape[1] > 16:
        raise ValueError(
            f"planes: shape {planes.shape}; expected (H,R) with H = {x.shape[-1]} and R <= 16"
        )
    x = finite(x)
    side = jnp.einsum("BTNH,HR->BTNR", x, planes.astype(x.dtype), precision="highest") > 0
    place = jnp.cumsum(side, axis=-1) % 2
    bits = np.arange(planes.shape[1])[::-1].reshape(1, 1, 1, -1)
    return (place << bits).sum(-1)


def sample_keys(draws: Array, density: Array, length: int) -> tuple[Array, Array]:
    """The m keys of each segment that numbers in [0,1) draw, and log 1/(m p): both (B,n m,K).

    Segments are `length` keys, the last may be shorter; p is the density (B,S,K), not negative,
    over its sum in the segment.  So sum 1/(m p) f(key) estimates the sum of f over a segment.
    """
    B, S, heads = density.shape
    d = finite(lax.stop_gradient(density))
    d = jnp.pad(d + jnp.finfo(d.dtype).tiny, ((0, 0), (0, -S % length), (0, 0)))
    n = -(-S // length)
    d = jnp.moveaxis(d.reshape(B, n, length, heads), 3, 2)
    ends = jnp.cumsum(d, axis=-1)  # (B,n,K,length)
    first = np.arange(0, S, length)[None, :, None, None]
    search = functools.partial(jnp.searchsorted, side="right")
    at = draws.astype(d.dtype)[None, None, None] * ends[..., -1:]
    at = jnp.vectorize(search, signature="(s),(m)->(m)")(ends, at)
    at = jnp.minimum(at, np.minimum(length, S - first) - 1)
    log_weight = -jnp.log(len(draws) * jnp.take_along_axis(d, at, axis=-1) / ends[..., -1:])
    flat = lambda x: jnp.moveaxis(x, 3, 2).reshape(B, n * len(draws), heads)
    return flat(at + first), flat(log_weight)


def running_kth(rank: Int[Array, " S"], k: int) -> Int[Array, " S"]:
    """The k-th smallest of rank[: i + 1] for each i, S where there are fewer.

    rank is a permutation of 0 .. S - 1.  A wavelet matrix finds all of them in O(S log^2 S): from
    the highest bit on, it asks for each prefix how many of the ranks left have a zero there.  low
    and high bound what is left of a prefix in the order of the bits so far; skip counts smaller
    ranks that are still to be passed.
    """
    S = len(rank)
    order, smallest = rank, jnp.zeros(S, rank.dtype)
    low, high, skip = jnp.zeros(S, int), jnp.arange(1, S + 1), jnp.full(S, k - 1)
    for bit in reversed(range((S - 1).bit_length())):
        one = order >> bit & 1
        zeros = jnp.pad(jnp.cumsum(1 - one), (1, 0))  # in front of each place
        count = zeros[high] - zeros[low]
        is_one = skip >= count  # the k-th smallest has a one at this bit
        smallest = smallest + (is_one.astype(rank.dtype) << bit)
        skip = skip - jnp.where(is_one, count, 0)
        low, high = (
            jnp.where(is_one, zeros[-1] + place - zeros[place], zeros[place])
            for place in (low, high)
        )
        order = order[jnp.argsort(one, stable=True)]
    return jnp.where(jnp.arange(S) < k - 1, S, smallest)
