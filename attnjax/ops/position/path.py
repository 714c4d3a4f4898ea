"""PaTH attention: a key is seen through the reflections of all tokens after it.

    s_ij = q_i^T H_i H_{i-1} .. H_{j+1} k_j / sqrt(H),    H_l = I - beta_l w_l w_l^T
    o_i = sum_j softmax_j(s_ij) v_j,    j <= i

Where RoPE turns by the same angle at each step, the path from key to query depends on what stands
between.

Paper: Yang, Shen, Wen, Tan, Mishra, Ren, Panda and Kim, "PaTH Attention: Position Encoding via
Accumulating Householder Transformations", 2025, arXiv:2505.16381; code: fla-org's
flash-linear-attention.
Limits: beta = 0 is causal softmax attention.
Differs: w, of length 1 in the paper, and beta in (0, 2) come from the layer; the forget gate of
PaTH-FoX is left out.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from attnjax.core.dispatch import compiled
from attnjax.core.numerics import einsum, repeat_heads, wide
from attnjax.core.pairwise.outward import Tile, attend_outward, behind
from attnjax.core.recurrence.chunked import inverse
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, normal, uniform
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, Q, TokenK, TokenV


class Past(NamedTuple):
    """Of all tokens so far."""

    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K D"]
    w: Float[Array, "B S K H"]
    beta: Float[Array, "B S K"]


class _Keys(NamedTuple):
    """Of a tile, whose product H_s .. H_1 is I - W^T R W, R = (I + tril(beta W W^T, -1))^-1 beta.

    `seen` is R tril(W K^T, -1): what the reflections after a key take off its scores.
    """

    k: Array
    w: Array
    reflected: Array  # R W
    seen: Array


@on_any_mesh
@compiled("block", "return_state")
def path_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    w: TokenK,
    beta: Float[Array, "B T K"],
    *,
    block: int = 128,
    state: Past | None = None,
    return_state: bool = False,
) -> Any:
    """Causal; O(T) memory, by tiles of `block` tokens.

    w and beta are of the key heads, H_l is that of token l.
    """
    past = behind(state, Past(k, v, w, beta))
    of_heads = lambda x: repeat_heads(x, q)
    keys = of_heads(past.k), of_heads(past.w), of_heads(past.beta)[..., None]
    scaled = wide(q) / math.sqrt(q.shape[-1])
    met = attend_outward(
        _reflect, (), keys, of_heads(past.v), scaled, prepare=_tile_of_keys, block=block
    )
    out = met.mean.astype(v.dtype)
    return (out, past) if return_state else out


def _tile_of_keys(keys: tuple[Array, Array, Array]) -> _Keys:
    """Arrays (...,s,H), beta (...,s,1)."""
    k, w, beta = keys
    between = jnp.tril(einsum("...tH,...sH->...ts", beta * w, w), -1)
    solved = inverse(between) * jnp.swapaxes(beta, -1, -2)
    scores = jnp.tril(einsum("...tH,...sH->...ts", w, k), -1)
    return _Keys(
        k,
        w,
        einsum("...ts,...sH->...tH", solved, w),
        einsum("...ts,...sr->...tr", solved, scores),
    )


def _reflect(q: Array, tile: Tile) -> tuple[Array, Array]:
    """The carry is the query, reflected by all tokens between it and the tile."""
    k, w, reflected, seen = tile.keys
    along = jnp.where(tile.ok, einsum("BNtH,BNsH->BNts", q, w), 0.0)
    scores = einsum("BNtH,BNsH->BNts", q, k) - einsum("BNtl,BNls->BNts", along, seen)
    return scores, q - einsum("BNts,BNsH->BNtH", along, reflected)


OPS = (
    Op(
        path_attention,
        draw={"w": normal(0.4), "beta": uniform(0.0, 2.0), "block": 4},
        limits=(
            Limit("beta = 0 is causal softmax attention", {"beta": fill(0.0)}, causal_attention),
        ),
    ),
)
