"""Attention of one learned query to every prefix: a recurrent network that a scan computes.

    out_t = sum_{j <= t} exp(s_j) v_j / sum_{j <= t} exp(s_j),    s_j = q . k_j / sqrt(H)

The state of a prefix is (max s, sum exp(s - max), sum exp(s - max) v), and merging two is
associative. This is linear attention with one exponential feature: `exponential_attention` with
the logarithm 0 for the query, and s_j for the key.

Paper: Feng et al., "Attention as an RNN", 2024, arXiv:2405.13956.
Limits: the last output is softmax attention of q to all tokens; q = 0 gives the mean so far.
Differs: Aaren passes one query token through its layers, and projects it in each; here the query
is given.
"""

import math
from typing import Any

import jax.numpy as jnp

from attnjax.core.numerics import einsum
from attnjax.core.recurrence.linear import Impl
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.exponential import ExponentialState, exponential_attention
from attnjax.typing import Array, Float


@on_any_mesh
def prefix_attention(
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N D"],
    q: Float[Array, "N H"],
    *,
    state: ExponentialState | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """What the query of each head reads from the tokens up to each, (B,T,N,D).

    Time and memory O(T), and a state of D + 2 numbers a head to go on from. Queries have no tokens,
    so there is nothing to share keys for: K = N.
    """
    scores = einsum("NH,BTNH->BTN", q, k)[..., None] / math.sqrt(q.shape[-1])
    return exponential_attention(
        jnp.zeros_like(scores), scores, v, state=state, return_state=return_state, impl=impl
    )


def _mean_so_far(v: Float[Array, "B T N D"]) -> Float[Array, "B T N D"]:
    return jnp.cumsum(v, axis=1) / jnp.arange(1, v.shape[1] + 1)[:, None, None]


OPS = (
    Op(
        prefix_attention,
        papers=(312,),
        limits=(Limit("q = 0 gives the mean so far", {"q": fill(0.0)}, _mean_so_far),),
    ),
)
