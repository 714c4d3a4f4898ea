"""Attention among words and entities: a query of its own for each of the two types of keys.

    s_ij = q_i . k_j / sqrt(H) for a word j,    r_i . k_j / sqrt(H) for an entity j
    out_i = sum_j softmax_j(s_ij) v_j

q_i and r_i are x_i times two of four matrices: Q_w2w and Q_w2e where token i is a word, Q_e2w and
Q_e2e where it is an entity. The scores are one product of (q_i, r_i) with (k_j, 0) or (0, k_j).

Paper: Yamada et al., "LUKE: Deep Contextualized Entity Representations with Entity-aware
Self-attention", 2020, arXiv:2010.01057, section 3.2.
Limits: r = q is softmax attention.
"""

import math

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import clean, finite, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V


@on_any_mesh
def entity_aware_attention(
    q: Q,
    k: K,
    v: V,
    q_entity: Q,
    entity: Float[Array, "B S"],
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """`q` meets the keys of words, `q_entity` those of entities; entity is 1 for them, else 0."""
    keys, bad = clean(wide(k))
    of_entities = finite(entity)[:, :, None, None] * keys
    both = jnp.concatenate([keys - of_entities, of_entities], axis=-1) + bad[..., None]
    asked = jnp.concatenate([q, q_entity], axis=-1)
    scale = 1.0 / math.sqrt(q.shape[-1])
    return attend(asked, both.astype(k.dtype), v, mask=mask, scale=scale, impl=impl)


def _same_query(q: Q, k: K, v: V, q_entity: Q, entity: Float[Array, "B S"]) -> Out:
    """With no entities q alone counts."""
    return multi_head_attention(q, k, v)


_TYPES = Draw(lambda slot: (slot.rng.random(slot.shape) < 0.4).astype(float))
_WORDS = Draw(lambda slot: 0.0 * slot.rng.random(slot.shape))

OPS = (
    Op(
        entity_aware_attention,
        papers=(244,),
        draw={"entity": _TYPES},
        limits=(Limit("words alone: softmax attention", {"entity": _WORDS}, _same_query),),
    ),
)
