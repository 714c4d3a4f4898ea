"""Attention as a mean over a latent edge: p(j) exp(q_i . k_j / sqrt(H)), summed out or drawn.

    marginal   out_i = sum_j p(e_i = j | q, k) v_j,
               p(e_i = j | q, k) ~ exp(log_prior_ij + q_i . k_j / sqrt(H))
    sampled    out_i = v_{e_i},  e_i = argmax_j (log_prior_ij + q_i . k_j / sqrt(H) + gumbel_ij),
               a draw of the same: the mean of many draws is the marginal

A uniform prior gives softmax attention, -inf a mask, a function of i - j relative positions, a
graph's edges a graph's attention; several edges are heads.  Hopfield networks go on with out for q;
a prior that is shared by tokens and normalized over them gives slots.

Paper: Singh and Buckley, "Attention: Marginal Probability is All You Need?", 2023,
arXiv:2304.04556, as its abstract has it.
Limits: a prior of zeros is softmax attention; noise of zeros takes the largest score.
Differs: neither the text nor code was at hand: draws by Gumbel noise are our reading.
"""

import jax
import jax.numpy as jnp

from attnjax.core import masks, mods, normalizers
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V

Pairs = Float[Array, "B N T S"]


@of_whole_text
@on_any_mesh
def marginal_attention(
    q: Q,
    k: K,
    v: V,
    log_prior: Pairs,
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """The mean of values over all edges; `log_prior` need not be normalized."""
    return attend(q, k, v, mods=(mods.pair_bias(wide(log_prior)),), mask=mask, impl=impl)


@of_whole_text
@on_any_mesh
def sampled_attention(
    q: Q,
    k: K,
    v: V,
    log_prior: Pairs,
    noise: Pairs,
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """The value at one edge for each query and head, drawn by `jax.random.gumbel` noise.

    Gradients reach v alone.
    """
    shifted = mods.pair_bias(wide(log_prior) + wide(noise))
    return attend(q, k, v, mods=(shifted,), mask=mask, normalizer=normalizers.hard, impl=impl)


def _hard(q: Q, k: K, v: V) -> Out:
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, jnp.repeat(k, q.shape[2] // k.shape[2], 2))
    edge = jax.nn.one_hot(scores.argmax(-1), k.shape[1], dtype=v.dtype)
    return jnp.einsum("BNTS,BSND->BTND", edge, jnp.repeat(v, q.shape[2] // v.shape[2], 2))


_none = {"log_prior": fill(0.0)}
_EXEMPT = {"explicit": "the law would split both token axes of pairs over one mesh axis"}

OPS = (
    Op(
        marginal_attention,
        papers=(99,),
        limits=(Limit("a prior of zeros", _none, multi_head_attention),),
        exempt=_EXEMPT,
    ),
    Op(
        sampled_attention,
        papers=(99,),
        limits=(Limit("noise of zeros", _none | {"noise": fill(0.0)}, _hard),),
        exempt=_EXEMPT | {"future": "an argmax has no gradients to queries and keys"},
    ),
)
