"""Disentangled attention: content and relative position meet in separate terms.

    delta(i, j) = clip(i - j + m, 0, 2m - 1)
    s_ij = (q_i . k_j + q_i . k_rel[delta(i, j)] + k_j . q_rel[delta(i, j)]) / sqrt(3 H)

Paper: He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", 2020,
arXiv:2006.03654, equations 3 and 4.
Limits: zero tables are softmax attention with the scale 1 / sqrt(3 H).
Differs: equation 4 prints q_rel[delta(j, i)], which is `disentangled_as_printed`; both released
implementations, and so the weights, read q_rel at delta(i, j), as k_rel. To reverse the table does
not turn one into the other: delta ends at -m and at m - 1. q_rel and k_rel are the projected tables
of each head, given by the layer.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods
from attnjax.core.numerics import finite, repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, K, Out, Q, V

Table = Float[Array, "R N H"]


@on_any_mesh
def disentangled_attention(
    q: Q,
    k: K,
    v: V,
    q_rel: Table,
    k_rel: Table,
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Both tables hold 2m vectors for each of the N heads, for i - j = -m .. m - 1."""
    scores = _scores(q, k, q_rel, k_rel, lambda ahead: -ahead)
    return attend(q, k, v, mods=scores, mask=mask, scale=_scale(q), impl=impl)


@on_any_mesh
def disentangled_as_printed(
    q: Q,
    k: K,
    v: V,
    q_rel: Table,
    k_rel: Table,
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """The same, but q_rel is for j - i = -m .. m - 1, as equation 4 reads."""
    scores = _scores(q, k, q_rel, k_rel, lambda ahead: ahead)
    return attend(q, k, v, mods=scores, mask=mask, scale=_scale(q), impl=impl)


def _scale(q: Q) -> float:
    return 1 / math.sqrt(3 * q.shape[-1])


def _scores(
    q: Q, k: K, q_rel: Table, k_rel: Table, distance: Callable[[np.ndarray], np.ndarray]
) -> tuple[mods.Mod, mods.Mod]:
    """The two terms of positions; `distance` of j - i is what q_rel's entries are for."""
    entries = len(k_rel)
    if entries % 2 or q_rel.shape != k_rel.shape:
        raise ValueError(
            f"q_rel, k_rel: {q_rel.shape} and {k_rel.shape}; expected equal shapes (2m, N, H)"
        )
    m = entries // 2
    entry = lambda distances: np.clip(distances + m, 0, entries - 1)
    ahead = np.arange(-m, m + 1)  # the core's tables run over j - i = -m .. m
    keys = wide(k_rel)[entry(-ahead)]
    queries = wide(q_rel)[entry(distance(ahead))]
    content_to_position = jnp.einsum("BTNH,RNH->BTNR", finite(q), keys)
    position_to_content = jnp.einsum("BSNH,RNH->BSNR", repeat_heads(finite(k), q), queries)
    return (
        mods.query_relative(content_to_position * _scale(q)),
        mods.key_relative(position_to_content * _scale(q)),
    )


def _third(q: Q, k: K, v: V) -> Out:
    return attend(q, k, v, scale=_scale(q))


_ALIKE = Limit(
    "zero tables are softmax attention with the scale 1 / sqrt(3 H)",
    {"q_rel": fill(0.0), "k_rel": fill(0.0)},
    _third,
)
OPS = (
    Op(disentangled_attention, papers=(221,), sizes={"R": 6}, limits=(_ALIKE,)),
    Op(disentangled_as_printed, papers=(221,), sizes={"R": 6}, limits=(_ALIKE,)),
)
