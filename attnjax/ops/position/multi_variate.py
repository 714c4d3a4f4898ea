"""Attention over time and channels whose content, time and channel terms are apart (MVPA).

    token i is channel c of time t, i = t C + c
    s_ij = ((q_i + u) . k_j [t - t' <= window, or t the last] + (q_i + v) . R_{t-t'}
            + (q_i + z) . E_{|c-c'|}) / sqrt(H),    softmax over j with t' <= t, all channels

Beyond the window a key is still seen, by its place alone. The two terms of places are products of
T + C more features: q's with every distance, the key's one for its time and one for its channel.

Paper: Carzaniga et al., "A foundation model with multi-variate parallel attention to generate
neuronal activity", 2025, arXiv:2506.20354; code: IBM/multi-variate-parallel-transformer.
Limits: no terms of places, no biases and a window over all: attention causal in time.
Differs: the tables are the code's, projected to heads (R = W_R P, E = W_C P'), and read from their
first row for distance 0; the code reads them from their last.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.numerics import clean, einsum, repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend, attend_state, join_states
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, adjusted, by_sizes
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


class Places(NamedTuple):
    """Vectors of distances in time (X of them) and between channels (Y), and what is added to q.

    All of K key heads, shared by their query heads.
    """

    time: Float[Array, "X K H"]
    channel: Float[Array, "Y K H"]
    u: Float[Array, "K H"]
    v: Float[Array, "K H"]
    z: Float[Array, "K H"]


@of_whole_text
@on_any_mesh
def multi_variate_parallel_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    places: Places,
    *,
    channels: int,
    window: int = 10,
    impl: Impl = None,
) -> Out:
    """Softmax attention of T tokens, `channels` for each time, in order of time.

    X times and Y channels at most: ValueError for more, and where channels is no divisor of T.
    Two passes over disjoint keys, with content and without, whose states are joined.
    """
    T, C = q.shape[1], channels
    times = T // C
    if T % C or times > len(places.time) or len(places.channel) < C:
        raise ValueError(
            f"channels, places: {C} channels, T = {T} tokens, X = {len(places.time)}, "
            f"Y = {len(places.channel)}; expected a divisor of T, X at least {-(-T // C)} times "
            f"and Y at least {C}"
        )
    seen = np.tri(times, dtype=bool)
    near = seen & np.tri(times, k=window, dtype=bool).T
    near[-1] = True
    told_q, told_k = _features(q, places, times, C)
    content = wide(q) + _of_queries(places.u[None, None], q)
    side_by_side = lambda x, y: jnp.concatenate([wide(x), y], axis=-1)
    told_k = jnp.broadcast_to(told_k[None, :, None], (*k.shape[:3], times + C))
    parts = (
        (side_by_side(content, told_q), side_by_side(k, told_k), near),
        (told_q, told_k, seen & ~near),
    )
    states = [
        attend_state(
            queries,
            keys,
            wide(v),
            mask=masks.block_layout(pairs, C, C),
            scale=1.0 / math.sqrt(q.shape[-1]),
            impl=impl,
        )
        for queries, keys, pairs in parts
    ]
    return join_states(*states).astype(q.dtype)


def _of_queries(x: Array, q: Q) -> Array:
    """x (1,1,K,H), wide, for each query head."""
    return repeat_heads(wide(x), q)


def _features(q: Q, places: Places, times: int, C: int) -> tuple[Array, Array]:
    """What places say: q's terms with each time and channel (B,T,N,times+C), ones of keys."""
    x, bad = clean(wide(q))
    t, c = np.divmod(np.arange(q.shape[1]), C)
    lags = np.maximum(t[:, None] - np.arange(times), 0)  # those below zero are not seen
    apart = abs(c[:, None] - np.arange(C))
    N, heads = q.shape[2], places.u.shape[0]

    def term(bias: Array, table: Array, rows: int, at: np.ndarray) -> Array:
        table = jnp.repeat(wide(table[:rows]), N // heads, axis=1)
        every = einsum("BTNH,XNH->BTNX", x + _of_queries(bias[None, None], q), table)
        return jnp.take_along_axis(every, jnp.asarray(at)[None, :, None], axis=-1)

    of_time = term(places.v, places.time, times, lags)
    of_channel = term(places.z, places.channel, C, apart)
    told = jnp.concatenate([of_time, of_channel], axis=-1) + bad[..., None]
    ones = np.concatenate([t[:, None] == np.arange(times), c[:, None] == np.arange(C)], axis=-1)
    return told, jnp.asarray(ones, told.dtype)


def _in_time(q: Q, k: TokenK, v: TokenV) -> Out:
    C = _channels(q.shape[1])
    n = q.shape[1] // C
    return attend(q, k, v, mask=masks.block_layout(np.tri(n, dtype=bool), C, C))


def _channels(T: int) -> int:
    return 3 if T % 3 == 0 else 1


OPS = (
    Op(
        multi_variate_parallel_attention,
        papers=(351,),
        reads="all",
        sizes={"X": 24, "Y": 4},
        draw={"channels": by_sizes(lambda z: _channels(z["T"])), "window": 1},
        exempt={"grouped": "the tables belong to key heads, and would have to be repeated, too"},
        limits=(
            Limit(
                "no terms of places: attention causal in time",
                {"places": adjusted(lambda p: Places(*(0 * x for x in p))), "window": 99},
                _in_time,
            ),
        ),
    ),
)
