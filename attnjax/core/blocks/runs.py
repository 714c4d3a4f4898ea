"""Keys that stand for runs of tokens: which queries see them, what weight blocks get of them."""

import jax.numpy as jnp
import numpy as np

from attnjax.core.masks import Everything, Mask, prefix
from attnjax.core.masks.derived import OfRuns
from attnjax.typing import Array, Float

# -------------------------------------------------------------------- keys that stand for runs


def runs(x: Float[Array, "B S K H"], length: int, stride: int) -> Float[Array, "B n l K H"]:
    """Run c is the tokens stride * c .. stride * c + length - 1: all whole ones, one at least.

    NaN and infinities are zeros, as in `select.blocks_of`.  With S < length the one run repeats the
    last token, and `mask_of_runs` hides it.
    """
    at = stride * np.arange(count_runs(x.shape[1], length, stride))[:, None] + np.arange(length)
    at = at.astype(np.int32)  # XLA's partitioner fails on 64 bits here
    return jnp.take(jnp.where(jnp.isfinite(x), x, 0), at, axis=1, mode="clip")


def count_runs(S: int, length: int, stride: int) -> int:
    """How many runs S tokens have."""
    return max(1, (S - length) // stride + 1)


def mass_of_blocks(
    w: Float[Array, "... n"], length: int, stride: int, block: int, count: int
) -> Float[Array, "... m"]:
    """Weights of runs -> of the first `count` blocks of tokens.

    A run gives its weight to each `stride` of tokens it covers, once; a block has what its strides
    have.  `stride` divides `length` and `block`.
    """
    covers, width = length // stride, count * (block // stride)
    ends = covers - 1, max(0, width - w.shape[-1])
    w = jnp.pad(w, [*[(0, 0)] * (w.ndim - 1), ends])
    mass = jnp.stack([w[..., i : i + width] for i in range(covers)]).sum(0)
    return mass.reshape(*w.shape[:-1], count, block // stride).sum(-1)


def mask_of_runs(mask: Mask, T: int, S: int, length: int, stride: int) -> Mask:
    """`mask`, of T queries and S tokens, for keys that stand for `runs`.

    A run is seen where its first and its last token are: for masks that show each query one
    stretch of tokens, where all of them are.
    """
    seen = mask if S >= length else mask & prefix(S)
    if isinstance(seen, Everything):
        return seen
    return OfRuns(seen.resolve(T, S), length, stride)


def mask_of_tokens(mask: Mask, T: int, S: int) -> Mask:
    """`mask`, of T queries and S keys, for a call that gets some of them, or in another order.

    Positions then say which tokens the call's queries and keys are.
    """
    return mask_of_runs(mask, T, S, 1, 1)
