"""Position-aware cross-attention: content finds a position, a network moves on it, it reads.

    y_i = sum_j softmax_j(q_i . k_j / sqrt(H)) P_j,    P the sinusoidal code of places, width R
    y <- network(y)
    out_i = sum_j softmax_j(y_i . P_j / sqrt(R)) v_j

No content of the text goes through y, only where in it to be. The network is causal: one residual
block of gated linear attention and an MLP in the paper, which learns to walk along the text.

Paper: Lemerle et al., "Small-E: Small Language Model with Linear Attention for Efficient Speech
Synthesis", 2024, arXiv:2406.04467, section 3; code: theodorblackbird/lina-speech.
Limits: one key gives its value.
Differs: the code's P has all sines, then all cosines, a fixed permutation of ours; its projections
with layer norms of q, k and v belong to a layer. It has one head.
"""

from collections.abc import Callable

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op
from attnjax.ops.softmax_core.multi_head import sinusoidal_positions
from attnjax.typing import Array, K, Out, Q, V


def _still(y: Array) -> Array:
    return y


@of_whole_text
@on_any_mesh
def position_aware_cross_attention(
    q: Q,
    k: K,
    v: V,
    *,
    width: int,
    network: Callable[[Array], Array] = _still,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Softmax attention by places; `network` takes y (B,T,N,width), wide, to the same shape.

    `mask` hides padding of the text, from both steps.
    """
    S, heads = k.shape[1:3]
    code = sinusoidal_positions(S, width).astype(wide(k).dtype)[None, :, None]
    places = jnp.broadcast_to(code, (len(k), S, heads, width))
    y = network(attend(wide(q), wide(k), places, mask=mask, impl=impl))
    return attend(y, places, wide(v), mask=mask, impl=impl).astype(q.dtype)


def _its_value(q: Q, v: V) -> Out:
    return jnp.broadcast_to(jnp.repeat(v, q.shape[2] // v.shape[2], 2), (*q.shape[:3], v.shape[-1]))


OPS = (
    Op(
        position_aware_cross_attention,
        papers=(289,),
        draw={"width": 6},
        limits=(
            Limit(
                "one key gives its value",
                {name: Draw(lambda slot: slot.rng.standard_normal((2, 1, 2, 8))) for name in "kv"},
                _its_value,
            ),
        ),
    ),
)
