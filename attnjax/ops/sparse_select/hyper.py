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

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods
from attnjax.core.blocks.order import BlockOrder, bucket_order, gray_codes, sample_keys
from attnjax.core.blocks.selection import Selection
from attnjax.core.masks.future import refuse_causal
from attnjax.core.normalizers import State
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend_state, join_states
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, Sizes, by_sizes, uniform
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, Int, K, Out, Q, V

Density = Float[Array, "B S K"]


@of_whole_text
@on_any_mesh
def hyper_attention(
    q: Q,
    k: K,
    v: V,
    planes: Float[Array, "H R"],
    draws: Float[Array, " M"],
    *,
    block_size: int = 256,
    density: Density | None = None,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Softmax attention, estimated from block_size + m keys a query, in both directions.

    planes   standard normal numbers      draws  m uniform numbers in [0,1)
    density  not negative, how likely each key is to be sampled: the paper's theory takes the
             squared norms of values, its experiments None, all alike
    mask     forbids more, but does not choose

    Which keys a query sees depends on all tokens, later ones too. Raises ValueError for a mask that
    is known to be causal; a traced one is not known. `hyper_attention_causal` is the causal form.
    """
    T, S = q.shape[1], k.shape[1]
    if block_size < 1:
        raise ValueError(f"block_size: {block_size}; expected at least 1")
    refuse_causal(mask, T, S, "hyper_attention_causal")
    blocks = -(-S // block_size)
    block_of_queries = -(-T // blocks)  # as many blocks of queries as of keys
    rank = jnp.argsort(bucket_order(gray_codes(q, planes)), axis=1)
    keys = BlockOrder(bucket_order(gray_codes(k, planes)), block_size, S, full=True)
    state = functools.partial(state_of_block, wide(q), wide(k), wide(v), mask=mask, impl=impl)
    density = density_of(k, density)
    parts = block_and_samples(state, keys, rank // block_of_queries, draws, density, S)
    return join_states(*parts).astype(q.dtype)


def density_of(k: K, density: Density | None) -> Density:
    """Wide; that of equally likely keys if None."""
    return jnp.ones(k.shape[:3], wide(k).dtype) if density is None else wide(density)


def state_of_block(
    q: Q,
    k: K,
    v: V,
    keys: BlockOrder,
    block: Int[Array, "B T N"],
    weigh: tuple[mods.Mod, ...] = (),
    *,
    mask: masks.Mask,
    impl: Impl,
) -> State:
    """The sums over block `block` of the keys in their order, none where it is negative."""
    return attend_state(
        q,
        keys.take(k),
        keys.take(v),
        blocks=Selection(block[..., None], block[..., None] >= 0, 1, keys.size),
        mods=weigh,
        mask=keys.seen(mask, q.shape[1]),
        k_positions=keys.positions(q.shape[2]),
        impl=impl,
    )


def block_and_samples(
    state: Callable[..., State],
    keys: BlockOrder,
    own: Int[Array, "B T N"],
    draws: Float[Array, " M"],
    density: Density,
    segment: int,
) -> tuple[State, State]:
    """The sums over block P = own of the sorted keys, and over keys sampled outside of it.

    state    `state_of_block` of the call's q, k and v
    keys     (B,S,K) sorted inside each segment
    own      -1 where a query sees no block, and no samples
    segment  its length; m keys are sampled of each, for the queries whose block lies in it
    """
    sampled, log_weight = sample_keys(draws, density, segment)
    place = jnp.argsort(keys.order, axis=1)
    block = jnp.take_along_axis(place // keys.size, sampled, axis=1)
    stand_in = mods.mod(_stand_in, query=own, key=(block, log_weight))
    samples = BlockOrder(sampled, len(draws), keys.length, full=True)
    of_block = own * keys.size // segment  # -1 stays negative
    return state(keys, own), state(samples, of_block, (stand_in,))


def _stand_in(score: Array, own: Array, block: Array, log_weight: Array) -> Array:
    """A sample stands for 1/(m p) keys, and for none in the block that the query sees anyway."""
    return jnp.where(own == block, jnp.finfo(score.dtype).min / 8, score + log_weight)


def _each_once(z: Sizes) -> np.ndarray:
    return (np.arange(z["S"]) + 0.5) / z["S"]


OPS = (
    Op(
        hyper_attention,
        papers=(145,),
        reads="all",
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
