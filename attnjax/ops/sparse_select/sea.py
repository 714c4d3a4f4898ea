"""SEA: sparse attention under a mask that a linear one estimates, with a budget for all heads.

    A^ (N,T,M)   an estimate of each row's weights, its keys 0 .. i stretched over M columns
    kept   of row i the N round(keep M / (i + 1)) largest cells of A^_i, all heads together
    P_ij   = softmax_j(q_i . k_j / sqrt(H)) over keys j <= i of kept columns,
             floor((j + 1/2) M / (i + 1)) being the column of key j
    out_i  = a_i b_i sum_j P_ij v_j + (1 - b_i) mean of v_0 .. v_i,    a, b = sigmoid(scales_i)

Paper: Lee et al., "SEA: Sparse Linear Attention with Estimated Attention Mask", 2023,
arXiv:2310.01777; code: gmlwns2000/sea-attention, `k_flatten_dim` causal_batch.
Limits: a budget of all keys with a = b = 1 is causal attention.
Differs: the mask is dense here, O(T^2) booleans, so that the work is that of causal attention.  A
head may get many cells of a row and another none, which a `Selection` does not hold: its rows have
M places for each head.  The causal form alone; the estimate is the caller's: an MLP and a small
convolution of favor_attention(q, k, [places, v]) beside v, trained to tell a teacher's weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import masks
from attnjax.core.numerics import finite, repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Bool, Float, Out, Q, TokenK, TokenV

Estimate = Float[Array, "B N T M"]


@of_whole_text
@on_any_mesh
def sea_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    estimate: Estimate,
    scales: Float[Array, "B T N 2"],
    *,
    keep: int,
    impl: Impl = None,
) -> Out:
    """Causal attention to about `keep` keys for each row and head, and the mean of all values.

    No gradient reaches the estimate: it learns from a teacher.
    """
    kept = masks.array(sea_kept(estimate, keep=keep))
    read = attend(wide(q), wide(k), wide(v), mask=masks.causal & kept, impl=impl)
    values = repeat_heads(wide(v), q)
    count = jnp.arange(1, q.shape[1] + 1, dtype=values.dtype)
    mean = jnp.cumsum(values, axis=1) / count[None, :, None, None]
    a, b = jnp.moveaxis(jax.nn.sigmoid(wide(scales)), -1, 0)[..., None]
    return (a * b * read + (1 - b) * mean).astype(q.dtype)


@on_any_mesh
def sea_kept(estimate: Estimate, *, keep: int) -> Bool[Array, "B N T T"]:
    """Which keys of its past each row of each head sees; later ones at random."""
    if keep < 1:
        raise ValueError(f"keep: {keep}; expected at least 1")
    B, N, T, M = estimate.shape
    length = np.arange(1, T + 1)
    budget = np.clip(N * np.round(keep * M / length), 1, N * M).astype(np.int32)
    cells = jnp.moveaxis(finite(lax.stop_gradient(estimate)), 1, 2).reshape(B, T, N * M)
    rank = jnp.argsort(jnp.argsort(-cells, axis=-1), axis=-1)
    kept = jnp.moveaxis((rank < budget[None, :, None]).reshape(B, T, N, M), 2, 1)
    column = np.floor((np.arange(T) + 0.5) / length[:, None] * M - 1e-4)
    column = np.clip(column, 0, M - 1).astype(np.int32)
    return jnp.take_along_axis(kept, jnp.asarray(column)[None, None], axis=-1)


OPS = (
    Op(
        sea_attention,
        papers=(323,),
        reads="past",
        draw={"keep": 2},
        sizes={"M": 5},
        limits=(
            Limit(
                "a budget of all keys is causal attention",
                {"keep": 99, "scales": fill(40.0)},
                causal_attention,
            ),
        ),
    ),
)
