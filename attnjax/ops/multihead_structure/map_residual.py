"""Attention that adds the map of an earlier layer, by a gate that knows the time of a flow.

    out_n = (A_n + g_n A'_n) v_n = attend(q, k, v) + g attend(q', k', v)

A' is the map of the matching layer of the group of layers before, from its q' and k'; g (N) of each
example is a function of the timestep, zero at first. Rows sum to 1 + g. No map is stored.

Paper: Shen et al., "LaTtE-Flow: Layerwise Timestep-Expert Flow-based Transformer", 2025,
arXiv:2506.06952.
Limits: g = 0 is softmax attention.
Differs: neither code nor the paper's equations were found; that a map is added, by a gate of head
and timestep, is our reading; how the gate comes about is the caller's.
"""

from attnjax.core import masks
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V


@on_any_mesh
def map_residual_attention(
    q: Q,
    k: K,
    v: V,
    q_before: Q,
    k_before: K,
    gate: Float[Array, "B N"],
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Softmax attention of this layer, plus the gate times that of the one before, to v."""
    now = attend(wide(q), wide(k), wide(v), mask=mask, impl=impl)
    before = attend(wide(q_before), wide(k_before), wide(v), mask=mask, impl=impl)
    return (now + wide(gate)[:, None, :, None] * before).astype(q.dtype)


OPS = (
    Op(
        map_residual_attention,
        papers=(57,),
        limits=(Limit("g = 0 is softmax attention", {"gate": fill(0.0)}, multi_head_attention),),
    ),
)
