"""OpAmp attention: the difference of two attention maps, amplified more than their mean.

    E(z) = z + W_up gelu(W_down z),    z all heads of a token side by side, after rotary positions
    M+ = softmax(E_1(q) E_2(k)^T / sqrt(H)),    M- = softmax(E_3(q) E_4(k)^T / sqrt(H))
    out = (a (M+ - M-) + c (M+ + M-) / 2) v,    rows sum to c

Adapters are trained around a model whose weights stay, in every second or third of its layers.

Paper: Wu et al., "Efficient OpAmp Adaptation for Zoom Attention to Golden Contexts", 2025,
arXiv:2502.12502; code: wuhy68/OpampAdapter.
Limits: W_up = 0, the start, is softmax attention times c.
Differs: dropout in front of W_down belongs to training; W_up holds the factor of an adapter.
"""

from typing import NamedTuple

import jax

from attnjax.core import masks
from attnjax.core.numerics import clean, matmul, repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V


class Adapter(NamedTuple):
    """z -> z + W_up gelu(W_down z) of all heads of a token, wide."""

    down: Float[Array, "N H R"]
    up: Float[Array, "R N H"]

    def __call__(self, x: Q) -> Q:
        x, bad = clean(wide(x))
        N, H, R = self.down.shape
        if x.shape[2:] != (N, H):
            raise ValueError(f"down: {self.down.shape}; expected (N,H,R) of N, H = {x.shape[2:]}")
        tokens = x.reshape(*x.shape[:2], N * H)
        inner = jax.nn.gelu(matmul(tokens, self.down.reshape(N * H, R)), approximate=False)
        more = matmul(inner, self.up.reshape(R, N * H))
        return x + more.reshape(x.shape) + bad[..., None]


class Adapters(NamedTuple):
    """Those of q and k for the first map, then for the second."""

    q_plus: Adapter
    k_plus: Adapter
    q_minus: Adapter
    k_minus: Adapter


@on_any_mesh
def opamp_attention(
    q: Q,
    k: K,
    v: V,
    adapters: Adapters,
    *,
    difference: float = 10.0,
    common: float = 1.0,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Two softmax attentions of adapted q and k: `difference` is a, `common` is c.

    A key head that several query heads share is first repeated for each.
    """
    k, v = repeat_heads(k, q), repeat_heads(wide(v), q)
    plus = attend(adapters.q_plus(q), adapters.k_plus(k), v, mask=mask, impl=impl)
    minus = attend(adapters.q_minus(q), adapters.k_minus(k), v, mask=mask, impl=impl)
    out = (common / 2 + difference) * plus + (common / 2 - difference) * minus
    return out.astype(q.dtype)


def _start(adapters: Adapters) -> Adapters:
    return Adapters(*(each._replace(up=0 * each.up) for each in adapters))


OPS = (
    Op(
        opamp_attention,
        papers=(229,),
        draw={"difference": 3.0, "common": 0.7},
        sizes={"R": 3},
        limits=(
            Limit(
                "W_up = 0 is softmax attention",
                {"adapters": adjusted(_start), "common": 1.0},
                multi_head_attention,
            ),
        ),
    ),
)
