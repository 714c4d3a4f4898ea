"""InLine attention: linear attention normalized by subtraction, so that no two queries coincide.

    A_ij = phi(q_i) . phi(k_j) - mean_s phi(q_i) . phi(k_s) + 1/S
    o_i = sum_j A_ij v_j = phi(q_i) sum_j phi(k_j) (v_j - mean(v))^T + mean(v)

Paper: Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", 2024,
arXiv:2412.06590, equation 5.
Limits: q = 0, or one key for all tokens, gives the mean of the values.
Differs: its code scales q by 1 / (S sqrt(H)), which `q` or `phi` may bring along.
"""

from attnjax.core import features
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.recurrence.linear import Impl, linear_attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.linear import mean_of_all
from attnjax.typing import K, Out, Q, V


@of_whole_text
@on_any_mesh
def inline_attention(
    q: Q, k: K, v: V, *, phi: features.FeatureMap = features.identity, impl: Impl = None
) -> Out:
    """Over all tokens; weights sum to one and may be negative, phi may be anything."""
    values = wide(v)
    mean = values.mean(axis=1, keepdims=True)
    out = linear_attend(phi(wide(q)), phi(wide(k)), values - mean, block=None, impl=impl)
    return (out + repeat_heads(mean, q)).astype(v.dtype)


OPS = (
    Op(
        inline_attention,
        papers=(383,),
        reads="all",
        limits=(
            Limit("q = 0 gives the mean of the values", {"q": fill(0.0)}, mean_of_all),
            Limit(
                "one key for all tokens gives the mean of the values",
                {"k": fill(2.0)},
                mean_of_all,
            ),
        ),
    ),
)
