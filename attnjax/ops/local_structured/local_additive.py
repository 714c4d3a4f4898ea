"""Additive attention to the frames around each frame, of which there are always as many.

    s_ij = w . tanh(q_i + k_j),    A_ij = softmax_j(s_ij),    |i - j| <= radius

q_i = W_h h_i + b for a state h_i, k_j = W_e e_j for what is attended to, e_j the value: onset or
activation posteriors, or the spectrogram. Before the first frame and behind the last one there are
frames of zeros, which take weight. Without them it is `luong_concat` under
`masks.window(radius, radius)`.

Paper: Cheuk et al., "Revisiting the Onsets and Frames Model with Additive Attention", 2021,
arXiv:2104.06607.
Limits: radius = 0 gives each frame its value.
"""

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods
from attnjax.core.numerics import repeat_heads
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text
from attnjax.op import Limit, Op
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


@of_whole_text
def local_additive_attention(
    q: Q, k: TokenK, v: TokenV, weight: Float[Array, "N H"], *, radius: int = 30, impl: Impl = None
) -> Out:
    """Attention to 2 radius + 1 frames. Raises ValueError for a negative radius."""
    if radius < 0:
        raise ValueError(f"radius: {radius}; expected at least 0")
    T = q.shape[1]
    k, v = (jnp.pad(x, ((0, 0), (radius, radius), (0, 0), (0, 0))) for x in (k, v))
    return attend(
        q,
        k,
        v,
        mods=(mods.additive(q, k, weight),),
        mask=masks.window(radius, radius),
        q_positions=np.arange(radius, T + radius),
        impl=impl,
    )


def _own(q: Q, v: TokenV) -> Out:
    return repeat_heads(v, q)


OPS = (
    Op(
        local_additive_attention,
        papers=(243,),
        reads="all",
        draw={"radius": 5},
        limits=(Limit("radius = 0 gives each frame its value", {"radius": 0}, _own),),
    ),
)
