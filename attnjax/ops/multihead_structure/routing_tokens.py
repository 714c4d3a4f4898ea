"""Routing to experts by what the tokens that one attends to would choose.

    e_j = softmax(logits_j),    r_i = mean over heads of sum_j softmax_j(q_i . k_j / sqrt(H)) e_j

logits are those of a router, E experts; q and k those of the attention layer before, or, one head,
q = x W_s sqrt(H) / tau and k = x, the similarity of the layer's own inputs. r_i is a distribution,
and its top experts with their shares are `route(jnp.log(r), top_k)`.

Paper: Nguyen et al., "Improving Routing in Sparse Mixture of Experts with Graph of Tokens", 2025,
arXiv:2505.00792.
Limits: tokens that see only themselves choose as without.
Differs: neither code nor the paper's text was found; its abstract fixes that routing mixes by
attention or similarity, the mean over heads is our reading.
"""

import jax
import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import clean, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op
from attnjax.typing import Array, Float, K, Q


@on_any_mesh
def attention_aware_routing(
    q: Q,
    k: K,
    logits: Float[Array, "B S E"],
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Float[Array, "B T E"]:
    """The probabilities of E experts for each token, mixed by attention; no map is stored."""
    x, bad = clean(wide(logits))
    chosen = jax.nn.softmax(x, axis=-1) + bad[..., None]
    values = jnp.broadcast_to(chosen[:, :, None], (*k.shape[:3], x.shape[-1]))
    return attend(wide(q), wide(k), values, mask=mask, impl=impl).mean(2).astype(q.dtype)


OPS = (
    Op(
        attention_aware_routing,
        papers=(51,),
        sizes={"E": 5},
        limits=(
            Limit(
                "tokens that see themselves alone",
                {"mask": masks.window(0, 0)},
                lambda logits: jax.nn.softmax(logits, axis=-1),
            ),
        ),
    ),
)
