"""Hard attention: only the keys with the largest score are read.

    average_hard     out_i = mean of v_j over all j with s_ij = max_l s_il
    leftmost_hard    out_i = v_j of the first such j,    rightmost_hard  of the last

Paper: Barcelo et al., "Logical Languages Accepted by Transformer Encoders with Hard Attention",
2023, arXiv:2310.03817.
Limits: without ties all three are the same; q = 0 ties all keys.
Differs: scores are divided by sqrt(H), which changes no maximum. There is no gradient to q and k.
"""

import jax.numpy as jnp

from attnjax.core import masks, mods, normalizers
from attnjax.core.numerics import repeat_heads
from attnjax.core.pairwise.attend import Impl, attend, attend_state
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.linear import mean_of_all
from attnjax.typing import Array, K, Out, Q, V


def average_hard_attention(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    """The limit of softmax attention for scores times infinity."""
    return attend(q, k, v, mask=mask, normalizer=normalizers.hard, impl=impl)


def leftmost_hard_attention(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    """One key, the first of the largest: two passes over the scores, the first for the maximum."""
    return _unique(_minus_position, q, k, v, mask, impl)


def rightmost_hard_attention(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    """One key, the last of the largest."""
    return _unique(_position, q, k, v, mask, impl)


@on_any_mesh
def _unique(rank: mods.Fn, q: Q, k: K, v: V, mask: masks.Mask, impl: Impl) -> Out:
    nothing = jnp.zeros((*k.shape[:3], 0), k.dtype)
    state = attend_state(q, k, nothing, mask=mask, normalizer=normalizers.hard, impl=impl)
    largest = state.m[..., 0].swapaxes(1, 2)
    ranked = mods.mod(rank, query=largest, positions=True)
    return attend(q, k, v, mods=(ranked,), mask=mask, normalizer=normalizers.hard, impl=impl)


def _minus_position(score: Array, q_pos: Array, k_pos: Array, largest: Array) -> Array:
    return jnp.where(score < largest, -jnp.inf, -k_pos.astype(score.dtype))


def _position(score: Array, q_pos: Array, k_pos: Array, largest: Array) -> Array:
    return jnp.where(score < largest, -jnp.inf, k_pos.astype(score.dtype))


def _first(q: Q, v: V) -> Out:
    return jnp.broadcast_to(repeat_heads(v[:, :1], q), (*q.shape[:3], v.shape[-1]))


def _last(q: Q, v: V) -> Out:
    return jnp.broadcast_to(repeat_heads(v[:, -1:], q), (*q.shape[:3], v.shape[-1]))


_TIES = {"q": fill(0.0)}
_EXEMPT = {"future": "it asks for gradients to q and k: there are none; its own test moves tokens"}

OPS = (
    Op(
        average_hard_attention,
        papers=(260,),
        limits=(Limit("q = 0 gives the mean of the values", _TIES, mean_of_all),),
        exempt=_EXEMPT,
    ),
    Op(
        leftmost_hard_attention,
        papers=(260,),
        limits=(Limit("q = 0 gives the first value", _TIES, _first),),
        exempt=_EXEMPT,
    ),
    Op(
        rightmost_hard_attention,
        papers=(260,),
        limits=(Limit("q = 0 gives the last value", _TIES, _last),),
        exempt=_EXEMPT,
    ),
)
