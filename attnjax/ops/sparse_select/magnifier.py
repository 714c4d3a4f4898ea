"""Attention-guided magnifier: queries see the details of the scene tokens that they looked at.

    m fine keys and values for each of c coarse tokens of the text, kept outside of it
    g_is  how much query i looked at coarse token s in the layer before: its weights, all heads' sum
    out_i = one softmax over q_i . k_j / sqrt(H) of the keys, and of the fine keys of the s with
            (g_is - min_s g_is) / (max_s g_is - min_s g_is) > threshold

Paper: Zhi et al., "LSceneLLM: Enhancing Large 3D Scene Understanding Using Adaptive Visual
Preferences", 2024, arXiv:2412.01292; code: Hoyyyaard/LSceneLLM, the layers of its language model.
Limits: a threshold that nothing passes is attention to the text; one below 0, to all details, too.
Differs: a detail is also forbidden where its coarse token is; in the code scenes come before those
who ask, so that this is never so. Where all g_is are equal nothing is chosen.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.order import BlockOrder
from attnjax.core.numerics import finite, wide
from attnjax.core.pairwise.attend import Impl, attend, attend_state, join_states
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention, multi_head_attention
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


@on_any_mesh
def magnifier_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    fine_k: Float[Array, "B F K H"],
    fine_v: Float[Array, "B F K D"],
    looks: Float[Array, "B T c"],
    *,
    start: int = 0,
    threshold: float = 96 / 255,
    mask: masks.Mask = masks.causal,
    impl: Impl = None,
) -> Out:
    """Attention to a text, and to details of those of its tokens that `looks` is largest for.

    fine_k, fine_v   F = c m details, those of a coarse token together; fine keys are turned like
                     their coarse token where positions are rotary
    looks            g, see `looks_at`, without gradient; zeros for who shall not see details
    start            the place of the first coarse token; they are neighbors

    The work is that of the details chosen.
    """
    T, F, c = q.shape[1], fine_k.shape[1], looks.shape[2]
    if F % c:
        raise ValueError(f"fine_k: {F} details, expected a multiple of looks' c = {c}")
    dtype, q = q.dtype, wide(q)
    g = lax.stop_gradient(finite(looks))
    least, most = (f(g, axis=-1, keepdims=True) for f in (jnp.min, jnp.max))
    chosen = g - least > threshold * (most - least)
    coarse = BlockOrder(np.minimum(start + np.arange(F) // (F // c), T), F // c, T)
    text = attend_state(q, wide(k), wide(v), mask=mask, impl=impl)
    details = attend_state(
        q,
        wide(fine_k),
        wide(fine_v),
        blocks=select.from_dense(chosen[:, :, None], block_k=F // c),
        mask=coarse.seen(mask, T),
        k_positions=coarse.order,
        impl=impl,
    )
    return join_states(text, details).astype(dtype)


@on_any_mesh
def looks_at(
    q: Q,
    k: TokenK,
    *,
    count: int,
    start: int = 0,
    mask: masks.Mask = masks.causal,
    impl: Impl = None,
) -> Float[Array, "B T c"]:
    """How much each query looks at the `count` tokens from `start` on, for the next layer.

    The weights are those of the text alone, `magnifier_attention` without details.
    """
    B, S, K = k.shape[:3]
    if not 0 <= start <= S - count:
        raise ValueError(f"start, count: {start}, {count}; expected a part of S = {S} tokens")
    is_coarse = np.arange(S)[:, None] == start + np.arange(count)
    each = jnp.broadcast_to(jnp.asarray(is_coarse, k.dtype)[None, :, None], (B, S, K, count))
    return attend(wide(q), wide(k), wide(each), mask=mask, impl=impl).sum(2)


def _all_details(q: Q, k: TokenK, v: TokenV, fine_k: TokenK, fine_v: TokenV) -> Out:
    join = lambda x, y: jnp.concatenate([x, y], axis=1)
    return multi_head_attention(q, join(k, fine_k), join(v, fine_v))


OPS = (
    Op(
        magnifier_attention,
        papers=(24,),
        sizes={"c": 3, "F": 6},
        limits=(
            Limit(
                "nothing chosen is attention to the text",
                {"threshold": 2.0},
                causal_attention,
            ),
            Limit(
                "all chosen is attention to text and details",
                {"threshold": -1.0, "mask": masks.everything},
                _all_details,
            ),
        ),
        exempt={"future": "looks choose, and have no gradient; its own tests look at the future"},
    ),
)
