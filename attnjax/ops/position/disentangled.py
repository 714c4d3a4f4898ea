"""Disentangled attention: content and relative position meet in separate terms.

    delta(i, j) = clip(i - j + m, 0, 2m - 1)
    s_ij = (q_i . k_j + q_i . k_rel[delta(i, j)] + k_j . q_rel[delta(j, i)]) / sqrt(3 H)

Paper: He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", 2020,
arXiv:2006.03654, equations 3 and 4.
Limits: zero tables are softmax attention with the scale 1 / sqrt(3 H).
Differs: q_rel and k_rel are the projected tables of each head, given by the layer.
"""

import math

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods
from attnjax.core.numerics import finite, repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, K, Out, Q, V


def disentangled_attention(
    q: Q,
    k: K,
    v: V,
    q_rel: Float[Array, "R N H"],
    k_rel: Float[Array, "R N H"],
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Both tables hold 2m vectors for each of the N heads, the distances -m .. m - 1."""
    entries, N = k_rel.shape[:2]
    if entries % 2 or q_rel.shape != k_rel.shape:
        raise ValueError(
            f"q_rel, k_rel: {q_rel.shape} and {k_rel.shape}; expected equal shapes (2m, N, H)"
        )
    scale = 1 / math.sqrt(3 * q.shape[-1])
    # a table of the core runs over j - i = -m .. m, 2m + 1 entries; delta merges the last two of
    # i - j, which are the first two of j - i for k_rel, and the last two for q_rel
    steps = np.arange(entries + 1)
    keys = wide(k_rel)[np.minimum(entries - steps, entries - 1)]
    queries = wide(q_rel)[np.minimum(steps, entries - 1)]
    content_to_position = jnp.einsum("BTNH,RNH->BTNR", finite(q), keys) * scale
    position_to_content = jnp.einsum("BSNH,RNH->BSNR", repeat_heads(finite(k), q), queries) * scale
    terms = (mods.query_relative(content_to_position), mods.key_relative(position_to_content))
    return attend(q, k, v, mods=terms, mask=mask, scale=scale, impl=impl)


def _third(q: Q, k: K, v: V) -> Out:
    return attend(q, k, v, scale=1 / math.sqrt(3 * q.shape[-1]))


OPS = (
    Op(
        disentangled_attention,
        papers=(221,),
        sizes={"R": 6},
        limits=(
            Limit(
                "zero tables are softmax attention with the scale 1 / sqrt(3 H)",
                {"q_rel": fill(0.0), "k_rel": fill(0.0)},
                _third,
            ),
        ),
    ),
)
