"""Local attention of translation models: a window at the query's place, or at a predicted one.

    local-m   A_ij = softmax(q_i . k_j over |j - i| <= radius)
    local-p   A_ij = softmax(q_i . k_j over |j - floor(p_i)| <= radius) * bell(j - p_i),
              bell(x) = exp(-x^2 / (2 sigma^2)),    sigma = radius / 2

Paper: Luong, Pham and Manning, "Effective Approaches to Attention-based Neural Machine
Translation", 2015, arXiv:1508.04025, section 3.2.
Limits: local-m with radius >= max(T, S) is global attention, luong_dot.
Differs: the paper's window is [p_i - radius, p_i + radius]; the authors' code has 2 radius + 1
keys around floor(p_i).  The caller predicts p_i = S sigmoid(w . tanh(W q_i)), for each head its
own; for the general score pass q W as q.
"""

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods, normalizers
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend, attention_weights
from attnjax.core.sharding import of_whole_text
from attnjax.op import Draw, Limit, Op, Slot, by_sizes
from attnjax.ops.softmax_core.luong import luong_dot
from attnjax.typing import Array, K, Out, PerQuery, Q, V


def luong_local_monotonic(
    q: Q, k: K, v: V, *, radius: int = 10, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    """Local-m: dot scores over the keys at most `radius` from the query's place; `mask` adds."""
    near = masks.window(radius, radius)
    return luong_dot(q, k, v, mask=mask & near, impl=impl)


@of_whole_text
def luong_local_predictive(
    q: Q,
    k: K,
    v: V,
    center: PerQuery,
    *,
    radius: int = 10,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Local-p: dot scores around `center`, real places in [0, S]; gradients reach them.

    The Gaussian acts after the softmax, so weights do not sum to one, and they are formed: O(T S)
    memory under every `impl`. A center that is NaN, as in padding, sees nothing.
    """
    if radius < 1:
        raise ValueError(
            f"radius: {radius}; expected at least 1, the Gaussian's width is half of it"
        )
    center = jnp.moveaxis(wide(center), 2, 1)[..., None]
    place = jnp.arange(k.shape[1], dtype=center.dtype)
    offset = place[None, None, None] - center  # (B,N,T,S)
    near = jnp.abs(jnp.ceil(offset)) <= radius  # ceil(j - p) is j - floor(p)
    seen = mask & masks.array(near)
    weights = attention_weights(wide(q), wide(k), mask=seen, scale=1.0)
    bell = jnp.exp(-2 * jnp.square(jnp.where(near, offset, 0.0) / radius))  # sigma = radius / 2
    # the sum of weights times values, by the engine: weights are scores that relu leaves alone
    as_scores = mods.mod(_replaced, pair=weights * bell)
    return attend(q, k, v, mods=(as_scores,), mask=seen, normalizer=normalizers.relu(), impl=impl)


def _replaced(score: Array, weight: Array) -> Array:
    return weight


def _places(slot: Slot) -> np.ndarray:
    return slot.rng.uniform(0.0, slot.sizes["S"], slot.shape)


OPS = (
    Op(
        luong_local_monotonic,
        papers=(208,),
        draw={"radius": 2},
        limits=(
            Limit(
                "a radius beyond both lengths is luong_dot",
                {"radius": by_sizes(lambda z: max(z["T"], z["S"]))},
                luong_dot,
            ),
        ),
    ),
    Op(
        luong_local_predictive,
        papers=(208,),
        draw={"center": Draw(_places), "radius": 3},
    ),
)
