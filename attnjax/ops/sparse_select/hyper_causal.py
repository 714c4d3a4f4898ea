"""HyperAttention for decoders: exact among near tokens, estimated over the halves before.

    tokens in segments of `threshold`: exact causal attention inside them
    for L = threshold, 2 threshold, ...: tokens of an odd segment of L tokens attend, as in
    `hyper_attention`, to a block and to samples of the keys of the segment before
    all parts merge as sums of exp(score), exp(score) v

Paper: Han et al., "HyperAttention: Long-context Attention in Near-Linear Time", 2023,
arXiv:2310.05869, algorithm 4.
Limits: up to `threshold` tokens, or with every key sampled once, it is causal softmax attention.
Differs: segments are halves of halves of T where T / threshold is a power of two, and otherwise do
not depend on T. The paper cuts the sorted queries into blocks, as many as there are of keys: which
keys a query sees then depends on queries after it. Here the query's own bucket says where among
the sorted keys it belongs, so nothing depends on later tokens.
"""

import functools

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.blocks.order import BlockOrder, bucket_order, gray_codes
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend_state, join_states
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, by_sizes, uniform
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.ops.sparse_select.hyper import (
    Density,
    block_and_samples,
    density_of,
    state_of_block,
)
from attnjax.typing import Array, Float, Int, K, Out, Q, V


@of_whole_text
@on_any_mesh
def hyper_attention_causal(
    q: Q,
    k: K,
    v: V,
    planes: Float[Array, "H R"],
    draws: Float[Array, " M"],
    *,
    block_size: int = 256,
    threshold: int = 4096,
    density: Density | None = None,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Causal attention from threshold + (block_size + m) log(T / threshold) keys a query, at most.

    The other arguments are those of `hyper_attention`; `block_size` divides `threshold`.
    """
    if block_size < 1 or threshold < 1 or threshold % block_size:
        raise ValueError(
            f"threshold: {threshold}; expected a multiple of block_size = {block_size} >= 1"
        )
    T, S = q.shape[1], k.shape[1]
    tokens = wide(q), wide(k), wide(v)
    near = masks.causal & masks.document(np.arange(T) // threshold, np.arange(S) // threshold)
    parts = [attend_state(*tokens, mask=near & mask, impl=impl)]
    state = functools.partial(state_of_block, *tokens, mask=mask, impl=impl)
    density = density_of(k, density)
    of_queries = gray_codes(q, planes)
    of_keys = gray_codes(k, planes)
    bits = planes.shape[1]
    segment = threshold
    while segment < T:
        # keys by segment, then by bucket; queries look in the segment before their own
        buckets = of_keys + (np.arange(S)[None, :, None] // segment << bits)
        wanted = of_queries + (np.arange(T)[None, :, None] // segment - 1 << bits)
        keys = BlockOrder(bucket_order(buckets), block_size, S, full=True)
        own = _block_before(wanted, repeat_heads(buckets, q), segment, block_size)
        parts += block_and_samples(state, keys, own, draws, density, segment)
        segment *= 2
    return join_states(*parts).astype(q.dtype)


def _block_before(
    wanted: Int[Array, "B T N"], buckets: Int[Array, "B S N"], segment: int, block_size: int
) -> Int[Array, "B T N"]:
    """Which block of the sorted keys holds a query's bucket, -1 in segments of an even number."""
    T, S = wanted.shape[1], buckets.shape[1]
    number = np.arange(T)[None, :, None] // segment
    has_keys = (number % 2 == 1) & ((number - 1) * segment < S)
    place = jnp.swapaxes(_places(jnp.swapaxes(buckets, 1, 2), jnp.swapaxes(wanted, 1, 2)), 1, 2)
    last = np.minimum(number * segment, S) - 1  # of the keys in the segment before
    return jnp.where(has_keys, jnp.minimum(place, last) // block_size, -1)


@functools.partial(jnp.vectorize, signature="(s),(t)->(t)")
def _places(numbers: Array, wanted: Array) -> Array:
    """Where among the sorted numbers those wanted stand: the middle of the equal ones."""
    ordered = jnp.sort(numbers)
    first = jnp.searchsorted(ordered, wanted, side="left")
    end = jnp.searchsorted(ordered, wanted, side="right")
    return (first + end) // 2


OPS = (
    Op(
        hyper_attention_causal,
        papers=(145,),
        draw={"draws": uniform(0.0, 1.0), "block_size": 2, "threshold": 4},
        sizes={"T": 8, "S": 8, "R": 3, "M": 3},
        limits=(
            Limit("exact up to the threshold", {"threshold": 8}, causal_attention),
            Limit(
                "every key drawn once",
                {"draws": by_sizes(lambda z: (np.arange(4) + 0.5) / 4)},
                causal_attention,
            ),
        ),
    ),
)
