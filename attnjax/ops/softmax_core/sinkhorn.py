"""Attention by optimal transport: queries sum to one, and keys are read alike.

    s_ij = scale q_i . k_j,    P_ij = exp(s_ij + a_i + b_j),    out_i = sum_j P_ij v_j
    rounds times:  b_j = log(T / S) - log sum_i exp(s_ij + a_i),
                   a_i = -log sum_j exp(s_ij + b_j),    a = 0 at first

Rows sum to one, columns to T / S: a doubly stochastic matrix where T = S. After the last round this
is softmax attention with the bias b_j, and every sum streams: no (T,S) array.

    multi_prompt_sinkhorn_attention   of the cosines of q and k over eps = 0.05, divided by T
    multi_prompt_score_map            sum_i S P_ij cos(q_i, k_j) of each pixel j

Paper: Kim et al., "OTSeg: Multi-prompt Sinkhorn Attention for Zero-Shot Semantic Segmentation",
2024, arXiv:2403.14183; "Geometric Attention: A Regime-Explicit Operator Semantics for Transformer
Attention", 2026, arXiv:2601.11618, its plan anchor.
Limits: equal queries are the mean of the values; scale = 0, too.
Differs: the number of rounds is fixed; the released code of OTSeg stops earlier where potentials of
the whole batch move by less than 1e-6, and adds 1e-8 to each marginal. Its classes are examples of
the batch here, and its heads are one. Of the second paper the abstract alone was read.
"""

import math

import jax.numpy as jnp
from jax import lax

from attnjax.core import features, mods, normalizers
from attnjax.core.dispatch import compiled
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend, attend_state
from attnjax.core.sharding import of_whole_text, on_any_mesh, pvary_like
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.linear import mean_of_all
from attnjax.typing import Array, Float, K, Out, Q, V


@on_any_mesh
def sinkhorn_attention(
    q: Q,
    k: K,
    v: V,
    *,
    scale: float | None = None,
    rounds: int = 20,
    impl: Impl = None,
) -> Out:
    """Each key is read T / S times in sum; one pass over the scores for each half of a round.

    `scale` is 1/sqrt(H) if None. No mask: sums of both directions need not exist under one.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    b = key_potentials(q, k, scale, rounds, impl)
    return attend(q, k, v, mods=(mods.mod(_plus, key=b),), scale=scale, impl=impl)


@compiled("rounds", "impl")
def key_potentials(
    q: Q, k: K, scale: float | Array, rounds: int, impl: Impl = None
) -> Float[Array, "B S N"]:
    """b, the bias of each key, which sets its share."""
    if rounds < 1:
        raise ValueError(f"sinkhorn_attention: rounds is {rounds}, expected at least 1")
    keys = repeat_heads(k, q)
    share = math.log(q.shape[1] / k.shape[1])

    def step(a: Float[Array, "B T N"], _: None) -> tuple[Array, None]:
        b = share - _log_sums(keys, q, a, scale, impl)
        return -_log_sums(q, keys, b, scale, impl), None

    start = pvary_like(jnp.zeros(q.shape[:3], wide(q).dtype), (q, k))
    # The last a would be the sum that softmax divides by.
    a, _ = lax.scan(step, start, None, length=rounds - 1)
    return share - _log_sums(keys, q, a, scale, impl)


def _log_sums(
    x: Q, y: K, of_y: Float[Array, "B S N"], scale: float | Array, impl: Impl
) -> Float[Array, "B T N"]:
    """log sum_j exp(scale x_i . y_j + of_y_j)."""
    nothing = jnp.zeros((*y.shape[:3], 0), y.dtype)
    bias = mods.mod(_plus, key=of_y)
    state = attend_state(x, y, nothing, mods=(bias,), scale=scale, impl=impl)
    return normalizers.log_sum(state)[..., 0].swapaxes(1, 2)


@of_whole_text
def multi_prompt_sinkhorn_attention(
    q: Q, k: K, v: V, *, eps: float = 0.05, rounds: int = 100, impl: Impl = None
) -> Out:
    """What the T prompts of a class read from S pixels; all weights together sum to one."""
    asked, keys = features.cosine(wide(q)), features.cosine(wide(k))
    out = sinkhorn_attention(asked, keys, wide(v), scale=1.0 / eps, rounds=rounds, impl=impl)
    return (out / q.shape[1]).astype(q.dtype)


@on_any_mesh
def multi_prompt_score_map(
    q: Q, k: K, *, eps: float = 0.05, rounds: int = 100, impl: Impl = None
) -> Float[Array, "B S N"]:
    """sum_i S P_ij cos(q_i, k_j) of each pixel j: how much it is of the class of the T prompts."""
    asked, keys = features.cosine(wide(q)), repeat_heads(features.cosine(wide(k)), q)
    b = key_potentials(asked, keys, 1.0 / eps, rounds, impl)
    a = -_log_sums(asked, keys, b, 1.0 / eps, impl)
    given = mods.mod(_plus_both, query=b, key=a)
    exp = normalizers.exp
    read = attend(
        keys, asked, asked, mods=(given,), normalizer=exp, scale=1.0 / eps, impl=impl
    )  # sum_i P_ij q_i, of length one
    return k.shape[1] * jnp.sum(read * keys, axis=-1)


def _plus_both(score: Array, of_query: Array, of_key: Array) -> Array:
    return score + (of_query + of_key)


def _plus(score: Array, bias: Array) -> Array:
    return score + bias


def _shared_mean(q: Q, v: V) -> Out:
    return mean_of_all(q, v) / q.shape[1]


OPS = (
    Op(
        sinkhorn_attention,
        papers=(220, 382),
        reads="all",
        draw={"rounds": 3},
        limits=(Limit("q = 0 gives the mean of the values", {"q": fill(0.0)}, mean_of_all),),
    ),
    Op(
        multi_prompt_sinkhorn_attention,
        papers=(220,),
        reads="all",
        draw={"rounds": 3, "eps": 0.5},
        limits=(Limit("one direction for all queries: means", {"q": fill(1.0)}, _shared_mean),),
    ),
)
