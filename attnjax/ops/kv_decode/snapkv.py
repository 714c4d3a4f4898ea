"""SnapKV: the last queries of a prompt vote which of its keys a cache keeps.

    vote_j = sum over the last `window` queries i of softmax_j(q_i . k_j / sqrt(H))
    kept   = the capacity - window keys before these of largest smoothed vote, and the last `window`

What comes next attends to the kept keys alone, each head to its own:

    kept = snapkv(q, k, capacity=1024, heads=k.shape[2])
    k, v = (take_tokens(x, kept) for x in (k, v))

for k that have their rotary positions.  Votes are smoothed over neighbors by their mean, zeros
beyond both ends, as in the released code, or by their maximum, as in the paper's runs.

Paper: Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", 2024,
arXiv:2404.14469; code: FasterDecoding/SnapKV.
Limits: a capacity of all tokens keeps them.
Differs: each query head keeps its own keys by default, as in the released code, which needs a copy
of keys for each; with `heads` query heads that share keys add their votes. Kept keys are in order.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.block_maps import block_mass
from attnjax.core.numerics import finite
from attnjax.core.scan.convolution import depthwise
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op
from attnjax.typing import Array, Float, Int, Q, TokenK

Votes = Float[Array, "B n X"]


def mean_of_neighbors(votes: Votes, size: int) -> Votes:
    """The mean of `size` neighbors, an odd number, zeros beyond both ends."""
    return depthwise(votes, jnp.full((size, 1), 1.0 / size, votes.dtype))


def peak_of_neighbors(votes: Votes, size: int) -> Votes:
    """The maximum of `size` neighbors, an odd number."""
    return lax.reduce_window(votes, -jnp.inf, lax.max, (1, size, 1), (1, 1, 1), "SAME")


MEAN_OF_FIVE = partial(mean_of_neighbors, size=5)


@on_any_mesh
def snapkv(
    queries: Q,
    keys: TokenK,
    *,
    window: int = 32,
    capacity: int = 2048,
    heads: int | None = None,
    smooth: Callable[[Votes], Votes] = MEAN_OF_FIVE,
) -> Int[Array, "B M X"]:
    """The tokens of a prompt that each of X heads keeps, in order: M = min(capacity, T) of them.

    X is N, or `heads`, a divisor of it.  ValueError for a capacity that the window alone fills.
    """
    B, T, N, _ = queries.shape
    if not 1 <= window < capacity:
        raise ValueError(f"window, capacity: {window}, {capacity}; expected 1 <= window < capacity")
    X = N if heads is None else heads
    if T <= capacity:
        return jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[:, None], (B, T, X))
    last, before = finite(queries[:, T - window :]), T - window
    mass = block_mass(last, finite(keys), window, 1, mask=masks.window(None, before))  # causal
    votes = select.over_group(mass, X)[:, 0, :, :before]
    votes = smooth(jnp.swapaxes(votes, 1, 2))
    top = lax.top_k(jnp.swapaxes(votes, 1, 2), capacity - window)[1]
    top = jnp.swapaxes(jnp.sort(top, axis=-1), 1, 2).astype(jnp.int32)
    own = np.arange(before, T, dtype=np.int32)[:, None]
    return jnp.concatenate([top, jnp.broadcast_to(own, (B, window, X))], axis=1)


def _all_tokens(queries: Q) -> Int[Array, "B T N"]:
    B, T, N, _ = queries.shape
    return jnp.broadcast_to(jnp.arange(T)[:, None], (B, T, N))


OPS = (
    Op(
        snapkv,
        papers=(368,),
        draw={"window": 4, "capacity": 6, "smooth": partial(mean_of_neighbors, size=3)},
        sizes={"M": 6, "X": 4},
        limits=(Limit("a capacity of all tokens keeps them", {"capacity": 9}, _all_tokens),),
    ),
)
