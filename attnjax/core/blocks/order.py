"""Tokens in another order: clusters, buckets of a hash, samples of keys."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.numerics import finite
from attnjax.typing import Array, Float, Int

# --------------------------------------------------- tokens in another order: clusters, buckets


def clusters(scores: Float[Array, "B X c T"], size: int) -> Int[Array, "B T X"]:
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
    return (place << jnp.arange(planes.shape[1])[::-1]).sum(-1)


def sample_keys(draws: Array, density: Array, length: int) -> tuple[Array, Array]:
    """The m keys of each segment that numbers in [0,1) draw, and log 1/(m p): both (B,n m,K).

    Segments are `length` keys, the last may be shorter; p is the density (B,S,K), not negative,
    over its sum in the segment.  So sum 1/(m p) f(key) estimates the sum of f over a segment.
    """
    B, S, heads = density.shape
    d = finite(lax.stop_gradient(density))
    d = jnp.pad(d + jnp.finfo(d.dtype).tiny, ((0, 0), (0, -S % length), (0, 0)))
    d = jnp.moveaxis(d.reshape(B, -1, length, heads), 3, 2)
    ends = jnp.cumsum(d, axis=-1)  # (B,n,K,length)
    first = np.arange(0, S, length)[:, None, None]
    search = functools.partial(jnp.searchsorted, side="right")
    at = draws.astype(d.dtype) * ends[..., -1:]
    at = jnp.vectorize(search, signature="(s),(m)->(m)")(ends, at)
    at = jnp.minimum(at, np.minimum(length, S - first) - 1)
    log_weight = -jnp.log(len(draws) * jnp.take_along_axis(d, at, axis=-1) / ends[..., -1:])
    flat = lambda x: jnp.moveaxis(x, 3, 2).reshape(B, -1, heads)
    return flat(at + first), flat(log_weight)
