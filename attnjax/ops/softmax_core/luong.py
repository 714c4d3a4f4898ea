"""Global attention of translation models: dot, general, concat and location scores.

    dot      q_i . k_j                             general    q_i^T W k_j
    concat   w_score . tanh(W [q_i; k_j])          location   (W q_i)_j
    A_ij = softmax_j(score_ij),    out_i = sum_j A_ij v_j

Paper: Luong, Pham and Manning, "Effective Approaches to Attention-based Neural Machine
Translation", 2015, arXiv:1508.04025, section 3.1.
Limits: general with W = I is dot.
Differs: one head in the paper, N here; the attentional state tanh(W_c [out_i; q_i]) and the feeding
of it to the next step belong to the decoder.
"""

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods
from attnjax.core.numerics import project, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text
from attnjax.op import Limit, Op, by_sizes, normal
from attnjax.typing import Array, Float, K, Out, Q, V


def luong_dot(q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None) -> Out:
    """The plain dot product, not divided by sqrt(H)."""
    return attend(q, k, v, mask=mask, scale=1.0, impl=impl)


def luong_general(
    q: Q,
    k: K,
    v: V,
    w: Float[Array, "H H"],
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """The bilinear score q_i^T w k_j."""
    return luong_dot(project(q, w).astype(q.dtype), k, v, mask=mask, impl=impl)


def luong_concat(
    q: Q,
    k: K,
    v: V,
    w_query: Float[Array, "H R"],
    w_key: Float[Array, "H R"],
    w_score: Float[Array, " R"],
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """The score w_score . tanh(q_i w_query + k_j w_key); W is w_query above w_key."""
    score = mods.additive(project(q, w_query), project(k, w_key), wide(w_score))
    return attend(q, k, v, mods=(score,), mask=mask, impl=impl)


@of_whole_text
def luong_location(
    q: Q, v: V, w: Float[Array, "S H"], *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    """The score of place j is row j of `w` times q_i: no keys, and S is fixed by `w`."""
    B, S, heads, _ = v.shape
    rows = jnp.broadcast_to(w.astype(q.dtype)[:, None], (B, S, heads, w.shape[1]))
    return luong_dot(q, rows, v, mask=mask, impl=impl)


OPS = (
    Op(luong_dot, papers=(208,)),
    Op(
        luong_general,
        papers=(208,),
        draw={"w": normal(0.3)},
        limits=(Limit("w = I is luong_dot", {"w": by_sizes(lambda z: np.eye(z["H"]))}, luong_dot),),
    ),
    Op(luong_concat, papers=(208,)),
    Op(luong_location, papers=(208,), draw={"w": normal(0.5)}),
)
