"""IA-RED^2: tokens that a policy token finds uninformative leave the text.

    I_i   = mean over heads of sigmoid(q_in . p_n / sqrt(H)),  q of token i, p of a policy token
    out_i = softmax_j(q_i . k_j / sqrt(H)) v_j over the tokens with I_j > threshold, for these i

Paper: Pan et al., "IA-RED^2: Interpretability-Aware Redundancy Reduction for Vision Transformers",
2021, arXiv:2106.12620, section 3.
Limits: threshold 0 is softmax attention.
Differs: our reading, no code was found. Tokens that left stay in the arrays, with results of zero,
so that shapes are static; a layer multiplies what it adds to x by `kept` too. One policy token and
one interpreter serve a group of layers, and what one group dropped the next does not see: give
`importance * kept` to the next.

Training draws each token with the chance I_i, and rewards a right answer by 1 - (share kept)^2, a
wrong one by -tau, against the reward of the tokens with I_i > 1/2.
"""

import jax
import jax.numpy as jnp

from attnjax.core import mods
from attnjax.core.numerics import einsum, finite, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, uniform
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Bool, Float, Out, Q, TokenK, TokenV

Importance = Float[Array, "B T"]


@on_any_mesh
def token_importance(queries: Q, policy: Float[Array, "B N H"]) -> Importance:
    """I, wide: how much a policy token finds in each token, for projections of both."""
    scores = einsum("BTNH,BNH->BTN", queries, policy) * queries.shape[-1] ** -0.5
    return jax.nn.sigmoid(scores).mean(-1)


@of_whole_text
@on_any_mesh
def reduced_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    importance: Importance,
    *,
    threshold: float = 0.5,
    leading: int = 1,
    impl: Impl = None,
) -> Out:
    """Attention among the tokens of importance above `threshold`; zeros for the others.

    The first `leading` tokens, such as the class token, always stay. No gradient reaches
    `importance`. The work is that of all tokens: outside jit gather those that stay, for less.
    """
    kept = kept_tokens(importance, threshold, leading)
    away = jnp.where(kept, 0.0, -jnp.inf).astype(wide(k).dtype)[..., None]  # as if masked
    away = jnp.broadcast_to(away, k.shape[:3])
    out = attend(q, k, v, mods=(mods.mod(jnp.add, key=away),), impl=impl)
    return jnp.where(kept[:, :, None, None], out, jnp.zeros((), out.dtype))


def kept_tokens(importance: Importance, threshold: float, leading: int) -> Bool[Array, "B T"]:
    """Which tokens stay."""
    first = jnp.arange(importance.shape[1])[None] < leading
    return first | (finite(importance) > threshold)


OPS = (
    Op(token_importance, papers=(301,)),
    Op(
        reduced_attention,
        papers=(301,),
        reads="all",
        draw={"importance": uniform(0.1, 1.0)},
        limits=(Limit("threshold 0 is attention", {"threshold": 0.0}, multi_head_attention),),
    ),
)
