"""Attention to the tokens of several cells, weighed by attention to the cells.

    alpha_cut = softmax_t(q_u . h_ct / sqrt(H)),    beta_uc = softmax_c(q_u . g_c / sqrt(H))
    a_u = sum_c beta_uc sum_t alpha_uct h_ct,       out_u = sum_w softmax_w(q_u . a_w / sqrt(H)) a_w

a_u is also one attention to all tokens whose scores have log beta_uc - logsumexp_t(q_u . h_ct /
sqrt(H)) added.

Paper: Liu et al., "HAConvGNN: Hierarchical Attention Based Convolutional Graph Neural Network for
Code Documentation Generation in Jupyter Notebooks", 2021, arXiv:2104.01002; code:
xuyeliu/HAConvGNN.
Limits: one cell is softmax attention, then that of the queries to what they read.
Differs: the states of tokens and cells, by graph convolutions and recurrent networks, are given;
the code runs that of the cells over examples, a slip. The last step sees later queries, too.
"""

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import einsum, wide
from attnjax.core.pairwise.attend import Impl, attend, attention_weights
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Bool, Float, Q


@of_whole_text
@on_any_mesh
def two_level_attention(
    q: Q,
    tokens: Float[Array, "B C L N H"],
    cells: Float[Array, "B C N H"],
    *,
    visible: Bool[Array, "B C L"] | None = None,
    impl: Impl = None,
) -> Q:
    """What T queries read from C cells of L tokens, then from each other.

    `visible` tells tokens from padding; a cell without any has no weight.
    """
    B, C, L, N, H = tokens.shape
    if visible is None:
        visible = jnp.ones((B, C, L), bool)
    beta = attention_weights(wide(q), wide(cells), mask=masks.array(visible.any(-1)[:, None, None]))
    each = lambda x: x.reshape(B * C, *x.shape[2:])
    queries = each(jnp.broadcast_to(wide(q)[:, None], (B, C, *q.shape[1:])))
    states, seen = each(wide(tokens)), masks.array(each(visible)[:, None, None])
    read = attend(queries, states, states, mask=seen, impl=impl).reshape(B, C, *q.shape[1:])
    a = einsum("BNTC,BCTNH->BTNH", beta, read)
    return attend(wide(q), a, a, impl=impl).astype(q.dtype)


def _flat(q: Q, tokens: Array) -> Q:
    a = multi_head_attention(q, tokens[:, 0], tokens[:, 0])
    return multi_head_attention(q, a, a)


OPS = (
    Op(
        two_level_attention,
        papers=(170,),
        reads="all",
        sizes={"C": 3, "L": 4},
        limits=(
            Limit(
                "one cell is softmax attention, twice",
                {
                    "tokens": Draw(lambda slot: slot.rng.standard_normal((2, 1, 4, 4, 8))),
                    "cells": Draw(lambda slot: slot.rng.standard_normal((2, 1, 4, 8))),
                },
                _flat,
            ),
        ),
    ),
)
