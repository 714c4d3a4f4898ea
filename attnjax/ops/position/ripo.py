"""Attention to differences of attributes, pitch and onset of a note, beside those of places (RIPO).

    FMS(d) = [sin(w_r d), cos(w_r d)], r < R,    w_r = base^(-r/R)
    s_ij = q_i . (k_j + E_{i-j} + sum_a W_a FMS_a(p_ia - p_ja)) / sqrt(H)

p_ia are attributes of token i: data, not positions. The last term is a product of 2 R A more
features of query and key, so no array of pairs is made:

    u sin(x - y) + c cos(x - y) = (u sin x + c cos x) cos y + (c sin x - u cos x) sin y,
    [u, c] = W_a^T q_i,    x = w_r p_ia,    y = w_r p_ja

Paper: Guo, Kang and Herremans, "A Domain-Knowledge-Inspired Music Embedding Space and a Novel
Attention Mechanism for Symbolic Music Modeling", 2022, arXiv:2212.00973; code:
guozixunnicolas/FundamentalMusicEmbedding.
Limits: W = 0 is attention with learned vectors of relative positions.
Differs: W has a bias in the code, which adds the same to all scores of a query and so nothing to
their softmax. E has rows for differences both ways here, for causal attention the first half and
one, and beyond them repeats the last.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from attnjax.core import masks, mods
from attnjax.core.numerics import clean, einsum, project, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.ops.position.shaw import shaw_relative_attention
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


class Relations(NamedTuple):
    """What differences of A attributes at R rates weigh, and those of places.

    weights[a, r] are the columns of W_a that meet sin(w_r d) and cos(w_r d); table has rows for the
    places -m .. m of a key from its query, X = 2m + 1, shared by the heads.
    """

    rates: Float[Array, "A R"]
    weights: Float[Array, "A R 2 N H"]
    table: Float[Array, "X H"]


@on_any_mesh
def ripo_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    attributes: Float[Array, "B T A"],
    relations: Relations,
    *,
    mask: masks.Mask = masks.causal,
    impl: Impl = None,
) -> Out:
    """Softmax self-attention of tokens with A attributes each; a shift of all of one is nothing.

    Heads become H + 2RA wide.
    """
    more_q, more_k = _features(q, attributes, relations)
    more_k = jnp.broadcast_to(more_k[:, :, None], (*k.shape[:3], more_k.shape[-1]))
    scale = 1.0 / math.sqrt(q.shape[-1])
    of_places = project(q, relations.table.T) * scale
    out = attend(
        jnp.concatenate([wide(q), more_q], axis=-1),
        jnp.concatenate([wide(k), more_k], axis=-1),
        wide(v),
        mods=(mods.query_relative(of_places),),
        mask=mask,
        scale=scale,
        impl=impl,
    )
    return out.astype(q.dtype)


def _features(q: Q, attributes: Array, relations: Relations) -> tuple[Array, Array]:
    """What queries (B,T,N,2RA) and keys (B,T,2RA) have beside their heads, wide."""
    (x, q_bad), (p, p_bad) = clean(wide(q)), clean(wide(attributes))
    angles = p[..., None] * wide(relations.rates)[None, None]  # (B,T,A,R)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    met = einsum("BTNH,ARfNH->fBTNAR", x, relations.weights)
    at = lambda wave: wave[:, :, None]
    of_cos = met[0] * at(sin) + met[1] * at(cos)
    of_sin = met[1] * at(sin) - met[0] * at(cos)
    width = 2 * relations.rates.size
    flat = lambda *parts: jnp.stack(parts, -1).reshape(*parts[0].shape[:-2], width)
    more_q = flat(of_cos, of_sin) + (q_bad + p_bad[..., None])[..., None]
    return more_q, flat(cos, sin) + p_bad[..., None]


def music_embedding(
    values: Float[Array, "B T"], rates: Float[Array, " R"], bias: Float[Array, " F"]
) -> Float[Array, "B T F"]:
    """FME: sin(w_r p), cos(w_r p) side by side for each rate, plus a learned bias; wide.

    Of equal differences of values, embeddings without the bias differ by the same turn.
    """
    angles = wide(values)[..., None] * wide(rates)
    waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return waves.reshape(*angles.shape[:-1], -1) + wide(bias)


def _shaw(q: Q, k: TokenK, v: TokenV, relations: Relations) -> Out:
    none = jnp.zeros((len(relations.table), v.shape[-1]))
    return shaw_relative_attention(q, k, v, relations.table, none, mask=masks.causal)


OPS = (
    Op(
        ripo_attention,
        papers=(83,),
        sizes={"A": 2, "R": 2, "X": 5},
        limits=(
            Limit(
                "W = 0: vectors of relative positions",
                {"relations": adjusted(lambda r: r._replace(weights=0 * r.weights))},
                _shaw,
            ),
        ),
    ),
)
