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
from attnjax.core.blocks.order import gray_codes
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend, attend_state, join_states
from attnjax.op import Draw, Limit, Op, normal, uniform
from attnjax.ops.sparse_select.hyper import blocks_and_samples
from attnjax.typing import Array, Float, K, Out, Q, V


def hyper_attention_causal(
    q: Q,
    k: K,
    v: V,
    planes: Float[Array, "H R"],
    draws: Float[Array, " M"],
    *,
    block_size: int = 256,
    threshold: int = 4096,
    density: Float[Array, "B S K"] | None = None,
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
    number = lambda n: np.arange(n) // threshold
    near = masks.causal & masks.document(number(T), number(S))
    near = near & mask
    parts = [attend_state(wide(q), wide(k), wide(v), mask=near, impl=impl)]
    of_queries, of_keys, R = gray_codes(q, planes), gray_codes(k, planes), planes.shape[1]
    length = threshold
    while length < T:
        segment = np.arange(T)[:, None] // length  # even ones have none before them
        some = (segment % 2 == 1) & ((segment - 1) * length < S)
        buckets = of_keys + ((np.arange(S)[:, None] // length) << R)
        wanted = of_queries + ((segment - 1) << R)
        by_head = (jnp.swapaxes(x, 1, 2) for x in (repeat_heads(buckets, q), wanted))
        place = jnp.swapaxes(_places(*by_head), 1, 2)
        end = np.minimum(segment * length, S) - 1
        own = jnp.where(some, jnp.minimum(place, end) // block_size, -1)
        parts += blocks_and_samples(
            q, k, v, own, buckets, draws, length, block_size, density, mask, impl
        )
        length *= 2
    return join_states(*parts).astype(q.dtype)


@functools.partial(jnp.vectorize, signature="(s),(t)->(t)")
def _places(numbers: Array, wanted: Array) -> Array:
    """Where among the sorted numbers those wanted stand: the middle of the equal ones."""
    first, end = (jnp.searchsorted(jnp.sort(numbers), wanted, side=x) for x in ("left", "right"))
    return (first + end) // 2


def _causal(q: Q, k: K, v: V) -> Out:
    return attend(q, k, v, mask=masks.causal)


OPS = (
    Op(
        hyper_attention_causal,
        papers=(145,),
        draw={"planes": normal(), "draws": uniform(0.0, 1.0), "block_size": 2, "threshold": 4},
        sizes={"T": 8, "S": 8, "R": 3, "M": 3},
        limits=(
            Limit("exact up to the threshold", {"threshold": 8}, _causal),
            Limit(
                "every key drawn once", {"draws": Draw(lambda _: (np.arange(4) + 0.5) / 4)}, _causal
            ),
        ),
    ),
)
