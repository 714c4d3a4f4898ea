"""Attention pooling: a few queries, learned or given, each read one vector from a set of states.

    attention_pool   s_lj = q_l . k_j                        no 1/sqrt(H)
    additive_pool    s_lj = q_l . tanh(k_j w + bias)
    out_l = sum_j softmax_j(s_lj) v_j
    dynamic_self_attention   q = 0;  rounds times:  out = tanh(attention_pool(q, u, u)),  q += out

Label pooling (TransICD): k = v = the states, q_l the vector of label l.  Context-aware pooling
(dialogue acts): the same with bias = b + g w_context for the context g of each example; a matrix on
v before it, or on the result after it, is the same.  Of attitude extraction, the self-attention of
Yang: one query, bias b; that of Zhou: w = I, bias 0, and tanh of the result; the attention by
features: luong_concat with the features' vectors, and a one for b, as queries, of the keys' width.

Paper: Biswas, Pham and Zhang, "TransICD", 2021, arXiv:2104.10652; Raheja and Tetreault, "Dialogue
Act Classification with Context-Aware Self-Attention", 2019, arXiv:1904.02594; Rusnachenko and
Loukachevitch, "Attention-Based Neural Networks for Sentiment Attitude Extraction using Distant
Supervision", 2020, arXiv:2006.13730; Yoon, Lee and Lee, "Dynamic Self-Attention", 2018,
arXiv:1808.07383.
Limits: q = 0 gives the mean of the values; one round is the tanh of the mean.
Differs: constants added to the score of a query cancel in its softmax and are left out.
"""

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import clean, matmul, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V

Learned = Float[Array, "L N H"]


def attention_pool(
    q: Q | Learned, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    """What each of T queries reads; q (B,T,N,H), or (L,N,H), the same for all examples.

    `masks.lengths(None, n)` hides padding.  Result (B,T,N,D), or (B,L,N,D).
    """
    if q.ndim == 3:
        q = jnp.broadcast_to(q, (k.shape[0], *q.shape))
    return attend(q, k, v, mask=mask, scale=1.0, impl=impl)


@on_any_mesh
def additive_pool(
    q: Float[Array, "B T N R"] | Float[Array, "L N R"],
    k: K,
    v: V,
    w: Float[Array, "H R"],
    bias: Float[Array, "B R"] | Float[Array, " R"],
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """`attention_pool` of the keys tanh(k w + bias), in q's dtype; bias (B,R) is of each example.

    The product is taken once for each key, not for each pair.
    """
    bias = wide(bias).reshape(-1, 1, 1, w.shape[1])
    k, bad = clean(wide(k))  # through tanh a masked NaN would reach the gradient of w
    keys = jnp.tanh(matmul(k, w) + bias) + bad[..., None]
    return attention_pool(q, keys.astype(q.dtype), v, mask=mask, impl=impl)


@on_any_mesh
def dynamic_self_attention(
    u: Float[Array, "B S N D"],
    *,
    rounds: int = 2,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Float[Array, "B N D"]:
    """The summary of each head: its query is the sum of the summaries of the rounds before.

    u are the tokens' vectors, in the paper a leaky relu of a linear map for each head.
    """
    if rounds < 1:
        raise ValueError(f"dynamic_self_attention: rounds is {rounds}, expected at least 1")
    query = jnp.zeros((u.shape[0], 1, *u.shape[2:]), u.dtype)
    out = query
    for _ in range(rounds):
        out = jnp.tanh(attention_pool(query, u, u, mask=mask, impl=impl))
        query = query + out
    return out[:, 0]


def _tanh_of_mean(u: Float[Array, "B S N D"]) -> Float[Array, "B N D"]:
    return jnp.tanh(u.mean(axis=1))


def _softmax_of_scaled(q: Q, k: K, v: V) -> Out:
    return multi_head_attention(q * q.shape[-1] ** 0.5, k, v)


OPS = (
    Op(
        attention_pool,
        papers=(282, 246, 293),
        limits=(Limit("softmax attention without its scale", {}, _softmax_of_scaled),),
    ),
    Op(additive_pool, papers=(282, 246, 293)),
    Op(
        dynamic_self_attention,
        papers=(174,),
        limits=(Limit("one round is the tanh of the mean", {"rounds": 1}, _tanh_of_mean),),
    ),
)
