"""Layers in fours: three with rotary positions and a window, the fourth sees all without positions.

    layer l, (l + 1) mod 4 > 0    softmax over i - window < j <= i of rotary(q, i) . rotary(k, j)
    layer l, (l + 1) mod 4 = 0    softmax over j <= i of q_i . k_j                     / sqrt(H)

A cache holds `window` keys in three of four layers, all of them in the fourth.

Paper: Yang et al., "Rope to Nope and Back Again: A New Hybrid Attention Strategy", 2025,
arXiv:2501.18795, section 4; the pattern as in transformers' `cohere2`.
Limits: the fourth layer is causal attention; a window of one token gives its value.
Differs: the released sibling pairs neighboring channels for rotation, a fixed permutation of ours.
"""

from attnjax.core import masks
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.positions import rotary
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.position.fourier import places
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import K, Out, Q, V

PERIOD = 4


@on_any_mesh
def hybrid_position_attention(
    q: Q,
    k: K,
    v: V,
    *,
    layer: int,
    window: int = 4096,
    base: float = 10000.0,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Causal attention of layer 0, 1, 2, ..., without norms of q and k; `mask` forbids more."""
    if window < 1 or layer < 0:
        raise ValueError(f"layer, window: {layer}, {window}; expected at least 0 and 1")
    if (layer + 1) % PERIOD == 0:
        return attend(q, k, v, mask=mask & masks.causal, impl=impl)
    near = masks.window(window - 1, 0)
    turn = lambda x: rotary(x, places(x, impl), base).astype(x.dtype)
    return attend(turn(q), turn(k), v, mask=mask & near, impl=impl)


OPS = (
    Op(
        hybrid_position_attention,
        papers=(231,),
        reads="past",
        draw={"layer": 0, "window": 4},
        limits=(
            Limit("the fourth layer is causal attention", {"layer": 3}, causal_attention),
            Limit(
                "a window of one token gives its value",
                {"window": 1},
                lambda q, v: v.repeat(q.shape[2] // v.shape[2], axis=2),
            ),
        ),
    ),
)
