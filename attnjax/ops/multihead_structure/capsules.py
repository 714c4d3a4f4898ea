"""Capsules routed by one self-attention: each says how much of its own result counts.

    z_i   = heads of softmax_j(q_i . k_j / sqrt(H)) v_j over all capsules j
    a_i   = sigmoid(sum over heads of w_n . z_in + b),    the activation of capsule i
    out_i = a_i z_i

in place of rounds of routing by agreement; a projection of the mean of out is what modalities are
compared by.

Paper: Duarte et al., "Routing with Self-Attention for Multimodal Capsule Networks", 2021,
arXiv:2112.00775, as its abstract has it.
Limits: w = 0 and b = 0 is half of softmax attention.
Differs: neither the text nor code was at hand: that the activation is one linear map of the pose is
our reading.
"""

import jax

from attnjax.core import masks
from attnjax.core.numerics import aligned, einsum, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V


@on_any_mesh
def capsule_attention(
    q: Q,
    k: K,
    v: V,
    w: Float[Array, "N D"],
    b: Float[Array, "1"],
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """What capsules are after one pass, times their activations."""
    pose = attend(wide(q), wide(k), wide(v), mask=mask, impl=impl)
    score = einsum("BTND,ND->BT", pose, w)
    active = jax.nn.sigmoid(score + aligned(b, score))
    return (active[:, :, None, None] * pose).astype(q.dtype)


def _half(q: Q, k: K, v: V) -> Out:
    return multi_head_attention(q, k, v) / 2


OPS = (
    Op(
        capsule_attention,
        papers=(241,),
        limits=(
            Limit("no activation: half of attention", {"w": fill(0.0), "b": fill(0.0)}, _half),
        ),
    ),
)
