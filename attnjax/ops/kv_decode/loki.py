"""Loki: keys are ranked by their first principal components, and attended to in full.

    s_ij = (q_i P_r) . (k_j P_r),    P_r the first r columns of P, the key head's own basis
    A_ij = softmax_j(q_i . k_j / sqrt(H)) over the `keep` keys of largest s_ij

P holds the principal directions of keys of a calibration text, without taking off their mean, of
rotated keys or of those before.  A cache of k P needs no other keys, for (q P) . (k P) = q . k.

Paper: Singhania et al., "Loki: Low-Rank Keys for Efficient Sparse Attention", 2024,
arXiv:2406.02542; code: hpcgroup/loki.
Limits: `keep` of all keys is attention, whatever P; r = H chooses by the scores themselves.
"""

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import einsum, finite, repeat_heads, wide
from attnjax.core.pairwise.attend import Impl
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.kv_decode.tidal import tidal_attention
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, K, Out, Q, V

Basis = Float[Array, "K H H"]


@of_whole_text
@on_any_mesh
def loki_attention(
    q: Q,
    k: K,
    v: V,
    basis: Basis,
    *,
    rank: int,
    keep: int,
    mask: masks.Mask = masks.causal,
    impl: Impl = None,
) -> Out:
    """Attention over the `keep` keys of largest score in `rank` dimensions; released: a quarter.

    `mask` says which keys there are to choose from.  Gradients do not reach the basis.
    """
    first = wide(basis)[..., :rank]
    of_queries = repeat_heads(first[None, None], q)[0, 0]
    low_q = einsum("BTNH,NHR->BTNR", finite(q), of_queries)
    low_k = einsum("BSKH,KHR->BSKR", finite(k), first)
    return tidal_attention(q, k, v, low_q, low_k, keep=keep, mask=mask, impl=impl)


def key_basis(keys: K) -> Basis:
    """The principal directions of the keys of each head, that of most of their size first."""
    moments = einsum("BSKH,BSKh->KHh", keys, keys)
    return jnp.linalg.eigh(moments)[1][..., ::-1]


OPS = (
    Op(
        loki_attention,
        papers=(280,),
        draw={"rank": 3, "keep": 4},
        limits=(Limit("all keys kept: attention", {"keep": 99}, causal_attention),),
    ),
)
