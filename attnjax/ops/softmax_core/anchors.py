"""Attention with a column anchor: each key gives the queries one unit in all, and they share it.

    A_ij = exp(s_ij) / sum_l exp(s_lj),    s_ij = q_i . k_j / sqrt(H),    out_i = sum_j A_ij v_j

Evidence exp(s) becomes a weight by an anchor: rows that sum to one are softmax attention, columns
that do are this, both are `sinkhorn_attention`, neither is `attend(normalizer=normalizers.exp)`.
What an anchor divides out is a gauge: a number added to all scores of a query does not change
softmax, one added to all scores of a key does not change this.  `probes.interaction` has what is
left when both are taken away.

Paper: "Geometric Attention: A Regime-Explicit Operator Semantics for Transformer Attention", 2026,
arXiv:2601.11618.
Limits: q = 0 is the sum of the values over the number of queries.
Differs: the abstract alone was read; the column anchor is our reading.
"""

import math

import jax.numpy as jnp

from attnjax.core import mods, normalizers
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.linear import mean_of_all
from attnjax.ops.softmax_core.sinkhorn import key_potentials
from attnjax.typing import Array, K, Out, Q, V


@on_any_mesh
def column_attention(q: Q, k: K, v: V, *, scale: float | None = None, impl: Impl = None) -> Out:
    """The weights of a key sum to one over the queries, those of a query to anything.

    `scale` is 1/sqrt(H) if None.  Two passes over the scores; no mask, all see all.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    share = math.log(q.shape[1] / k.shape[1])  # what a key would have where rows sum to one, too
    own = mods.mod(jnp.add, key=key_potentials(q, k, scale, 1, impl) - share)
    return attend(q, k, v, mods=(own,), normalizer=normalizers.exp, scale=scale, impl=impl)


def _shared(q: Q, k: K, v: V) -> Array:
    return mean_of_all(q, v) * (k.shape[1] / q.shape[1])


OPS = (
    Op(
        column_attention,
        papers=(382,),
        reads="all",
        limits=(Limit("q = 0: each query has as much of every value", {"q": fill(0.0)}, _shared),),
    ),
)
