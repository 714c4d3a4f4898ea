"""Compositional attention: tanh of a product times a gate of a distance, in place of softmax.

    A_ij = tanh(q_i . k_j / sqrt(H)) 2 sigmoid(-|q_i - k_j|_1 / sqrt(H)),    out_i = sum_j A_ij v_j

Weights in (-1, 1) add, ignore or subtract a value.

Paper: Li, Liang and Zhang, "Comateformer: Combined Attention Transformer for Semantic Sentence
Matching", 2024, arXiv:2412.07220.
Limits: q = 0 gives zero.
Differs: the paper has this beside softmax heads, in the first three layers; two sentences A and B
attend to each other by A and its transpose, which is this with q and k exchanged. Its other form of
the gate centers distances over the whole matrix, without the factor 2.
"""

import math

import jax
import jax.numpy as jnp

from attnjax.core import masks, mods, normalizers
from attnjax.core.mods import Mod
from attnjax.core.numerics import finite, wide
from attnjax.core.pairwise.attend import Impl, attend, attention_scores
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, K, Out, Q, V


@of_whole_text
@on_any_mesh
def compositional_attention(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    """Two scores of the same q and k; the product is kept as a matrix: O(T S) memory."""
    root = math.sqrt(q.shape[-1])
    operands = (wide(q) / root, wide(k) / root)
    distance = Mod(_distance, ("query_features", "key_features"), operands, contract=True)
    gated = mods.mod(_gated, pair=attention_scores(finite(q), finite(k)))
    terms = (distance, gated)
    return attend(q, k, v, mods=terms, mask=mask, normalizer=normalizers.identity, impl=impl)


def _distance(query: Array, key: Array) -> Array:
    return -jnp.abs(query - key)


def _gated(score: Array, product: Array) -> Array:
    return 2.0 * jax.nn.sigmoid(score) * jnp.tanh(product)


def _zeros(q: Q, v: V) -> Out:
    return jnp.zeros((*q.shape[:3], v.shape[-1]))


OPS = (
    Op(
        compositional_attention,
        papers=(183,),
        limits=(Limit("q = 0 gives zero", {"q": fill(0.0)}, _zeros),),
    ),
)
