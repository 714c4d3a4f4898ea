"""Cottention: cosines for weights, and a learned power of the number of keys for a denominator.

    o_i = sum_{j <= i} cos(q_i, k_j) v_j / j^sigmoid(m)        causal, with j counted from 1
    o_i = sum_j cos(q_i, k_j) v_j / S^sigmoid(m)               in both directions

Paper: Mongaras, Dohm and Larson, "Cottention: Linear Transformers With Cosine Attention", 2024,
arXiv:2409.18747.
Limits: a large m divides each value by its place (causal) or all by S, a small m gives the sum of
the values times their cosines.
Differs: that a causal value has the power of its own place, not of the query's, is of the released
code, where the query's is an alternative in a comment.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import aligned, repeat_heads, wide
from attnjax.core.recurrence import linear
from attnjax.core.recurrence.documents import sums_so_far
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, Int, K, Out, PerHead, Q, TokenK, TokenV, V


class State(NamedTuple):
    """The sum of k v^T of each query head, k of length 1, and how many tokens of its document."""

    linear: linear.State
    count: Int[Array, " B"]


def _share(counts: Int[Array, "B T"], m: PerHead) -> Float[Array, "B T N 1"]:
    """1 / counts^sigmoid(m); no more than 1 where there are none."""
    power = jax.nn.sigmoid(wide(m))
    log_counts = jnp.log(jnp.maximum(counts, 1).astype(power.dtype))[..., None]
    return jnp.exp(-aligned(power, log_counts) * log_counts)[..., None]


@on_any_mesh
def cottention(
    q: Q,
    k: TokenK,
    v: TokenV,
    m: PerHead,
    *,
    documents: linear.Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: linear.Impl = None,
) -> Any:
    """Causal cosine attention; m is learned, 0.5 at first in the paper."""
    past = None if state is None else state.linear
    of = linear.packed_documents(documents, q, past, impl)
    one = jnp.ones(q.shape[:2], jnp.int32)
    before = jnp.zeros_like(one, shape=len(q)) if state is None else state.count
    counts, count = sums_so_far(one, before, of, impl)
    shared = repeat_heads(wide(v), q) * _share(counts, m)  # m is of a query head, and so is this
    q, k = features.cosine(wide(q)), repeat_heads(features.cosine(wide(k)), q)
    out, last = linear.linear_attend(
        q, k, shared, documents=documents, state=past, return_state=True, impl=impl
    )
    out = out.astype(v.dtype)
    return (out, State(last, count)) if return_state else out


@of_whole_text
def cottention_full(q: Q, k: K, v: V, m: PerHead, *, impl: linear.Impl = None) -> Out:
    """Cosine attention to all keys, in both directions."""
    q, k = features.cosine(wide(q)), features.cosine(wide(k))
    out = linear.linear_attend(q, k, wide(v), block=None, impl=impl)
    return (out * _share(jnp.full((1, 1), k.shape[1]), m)).astype(v.dtype)


def _by_place(q: Q, k: TokenK, v: TokenV) -> Out:
    counts = jnp.arange(1, q.shape[1] + 1)[:, None, None]
    return linear.linear_attend(features.cosine(q), features.cosine(k), v / counts)


def _sum(q: Q, k: K, v: V) -> Out:
    return linear.linear_attend(features.cosine(q), features.cosine(k), v, block=None)


OPS = (
    Op(
        cottention,
        papers=(96,),
        limits=(
            Limit(
                "a large m divides each value by its place",
                {"m": fill(100.0)},
                _by_place,
            ),
        ),
    ),
    Op(
        cottention_full,
        papers=(96,),
        reads="all",
        limits=(
            Limit(
                "a small m gives the sum of the values times their cosines",
                {"m": fill(-100.0)},
                _sum,
            ),
        ),
    ),
)
