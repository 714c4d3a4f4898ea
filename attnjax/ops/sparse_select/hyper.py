"""HyperAttention: exact where hashing expects large scores, sampled everywhere else.

    q and k are sorted by the bucket that R planes hash them to and cut into n = S / block_size
    blocks; query i sees the block of its number, P_i, and those of m sampled keys outside P_i:
    out_i = (sum_{j in P_i} e_ij v_j + sum_{sampled j not in P_i} e_ij v_j / (m p_j))
            / (the same without v_j),    e_ij = exp(q_i . k_j / sqrt(H)),  p_j = density_j / sum

Paper: Han et al., "HyperAttention: Long-context Attention in Near-Linear Time", 2023,
arXiv:2310.05869, algorithms 1 to 3.
Limits: block_size >= S, or every key sampled once, is softmax attention.
Differs: all heads and examples are sampled by the same random numbers.
"""

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods
from attnjax.core.blocks.order import BlockOrder, bucket_order, gray_codes, sample_keys
from attnjax.core.blocks.selection import Selection
from attnjax.core.normalizers import State
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend_state, join_states
from attnjax.op import Limit, Op, Sizes, by_sizes, uniform
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V


def hyper_attention(
    q: Q,
    k: K,
    v: V,
    planes: Float[Array, "H R"],
    draws: Float[Array, " M"],
    *,
    block_size: int = 256,
    density: Float[Array, "B S K"] | None = None,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Softmax attention, estimated from block_size + m keys a query; `mask` forbids more.

    planes   standard normal numbers      draws  m uniform numbers in [0,1)
    density  not negative, how likely each key is to be sampled: the paper's theory takes the
             squared norms of values, its experiments None, all alike
    """
    T, S = q.shape[1], k.shape[1]
    if block_size < 1:
        raise ValueError(f"block_size: {block_size}; expected at least 1")
    rank = jnp.argsort(bucket_order(gray_codes(q, planes)), axis=1)
    own = rank // -(-T // -(-S // block_size))  # as many blocks of queries as of keys
    buckets = gray_codes(k, planes)
    parts = blocks_and_samples(q, k, v, own, buckets, draws, S, block_size, density, mask, impl)
    return join_states(*parts).astype(q.dtype)


def blocks_and_samples(
    q: Q, k: K, v: V, own, buckets, draws, length, block_size, density, mask, impl
) -> tuple[State, State]:
    """The states of block own (B,T,N), -1 for none, of the keys sorted by buckets (B,S,K), and of
    the keys drawn from its segment of `length` keys; sorting must leave keys in their segments."""
    T, (B, S, heads) = q.shape[1], k.shape[:3]
    q, k, v, m = wide(q), wide(k), wide(v), len(draws)
    density = jnp.ones((B, S, heads), k.dtype) if density is None else wide(density)
    order = bucket_order(buckets)
    at, log_weight = sample_keys(draws, density, length)
    block = jnp.take_along_axis(jnp.argsort(order, axis=1) // block_size, at, axis=1)

    def state(keys: BlockOrder, number: Array, *weigh: mods.Mod) -> State:
        return attend_state(
            q,
            keys.take(k),
            keys.take(v),
            blocks=Selection(number[..., None], own[..., None] >= 0, 1, keys.size),
            mods=weigh,
            mask=keys.seen(mask, T),
            k_positions=keys.positions(q.shape[2]),
            impl=impl,
        )

    weigh = mods.mod(_weigh, query=own, key=(block, log_weight))
    near, drawn = BlockOrder(order, block_size, S, full=True), BlockOrder(at, m, S, full=True)
    return state(near, own), state(drawn, own * block_size // length, weigh)


def _weigh(score: Array, own: Array, block: Array, log_weight: Array) -> Array:
    """A sample stands for 1/(m p) keys, and for none in the block that the query sees anyway."""
    return jnp.where(own == block, jnp.finfo(score.dtype).min / 8, score + log_weight)


def _each_once(z: Sizes) -> np.ndarray:
    return (np.arange(z["S"]) + 0.5) / z["S"]


OPS = (
    Op(
        hyper_attention,
        papers=(145,),
        draw={"draws": uniform(0.0, 1.0), "block_size": 3},
        sizes={"R": 3},
        limits=(
            Limit(
                "a block of all keys",
                {"block_size": by_sizes(lambda z: z["S"])},
                multi_head_attention,
            ),
            Limit("every key drawn once", {"draws": by_sizes(_each_once)}, multi_head_attention),
        ),
    ),
)
