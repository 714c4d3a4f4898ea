"""Half of each head looks back, the other half ahead: both directions, and order without codes.

    q = [q1, q2], k = [k1, k2], v = [v1, v2] along the width of a head
    out_i = [sum_{j <= i} softmax_j(q1_i . k1_j / sqrt(H/2)) v1_j,
             sum_{j >= i} softmax_j(q2_i . k2_j / sqrt(H/2)) v2_j]

Paper: Hallee and Gleghorn, "Dual Triangle Attention: Effective Bidirectional Attention Without
Positional Embeddings", 2026, arXiv:2604.18603.
Limits: the halves are causal attention, and causal attention on the reversed sequence.
Differs: the released code halves q, k and v with the same scale and diagonal, but of its 2N halves,
2n and 2n + 1 those of head n, the first N look back. Its weights want halves n and N + n as head n;
for N = 1 there is no difference.
"""

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import K, Out, Q, V


def dual_triangle_attention(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    """Two triangles that share the diagonal; H and D even. `mask` forbids more pairs."""
    for name, x in (("q", q), ("v", v)):
        if x.shape[-1] % 2:
            raise ValueError(f"{name}: width {x.shape[-1]}; expected an even width, one half each")
    q1, q2 = jnp.split(q, 2, axis=-1)
    k1, k2 = jnp.split(k, 2, axis=-1)
    v1, v2 = jnp.split(v, 2, axis=-1)
    back = attend(q1, k1, v1, mask=mask & masks.window(None, 0), impl=impl)
    ahead = attend(q2, k2, v2, mask=mask & masks.window(0, None), impl=impl)
    return jnp.concatenate([back, ahead], axis=-1)


def _reversed_halves(q: Q, k: K, v: V) -> Out:
    h, d = q.shape[-1] // 2, v.shape[-1] // 2
    back = causal_attention(q[..., :h], k[..., :h], v[..., :d])
    ahead = causal_attention(q[:, ::-1, :, h:], k[:, ::-1, :, h:], v[:, ::-1, :, d:])[:, ::-1]
    return jnp.concatenate([back, ahead], axis=-1)


OPS = (
    Op(
        dual_triangle_attention,
        papers=(378,),
        limits=(
            Limit(
                "causal on one half, causal on the reversed sequence on the other",
                {},
                _reversed_halves,
            ),
        ),
    ),
)
