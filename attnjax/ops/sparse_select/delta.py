"""Delta attention: what a few dense rows add to sparse attention is added to the rows behind them.

    o_i = sparse_i + (dense_g - sparse_g),    g = gamma floor(i / gamma)
    dense_g = sum_j softmax_j(q_g . k_j / sqrt(H)) v_j over all j <= g

Paper: Willette, Lee and Hwang, "Delta Attention: Fast and Accurate Sparse Attention Inference by
Delta Correction", 2025, arXiv:2505.11254, section 3.
Limits: gamma = 1 is causal attention; a sparse attention that sees everything is not changed.
Differs: the dense last queries are of the released code; dense_last = 0 leaves them out, as the
equations do. A query to which the sparse attention gives nothing, as in padding, is not corrected.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.blocks import runs
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import K, Out, Q, V

Sparse = Callable[[Q, K, V], Out]
STREAMING = masks.sinks(4) | masks.window(2047)


@of_whole_text
@on_any_mesh
def delta_attention(
    q: Q,
    k: K,
    v: V,
    *,
    sparse: masks.Mask | Sparse = STREAMING,
    gamma: int = 64,
    dense_last: int | None = None,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Sparse causal attention with every `gamma`-th query dense, and the others moved as it was.

    `sparse` is a mask, or any causal attention of (q, k, v), which then has to know `mask`. The
    last `dense_last` queries are dense, too: what comes next continues from them; if None, the
    T mod gamma + max(128, gamma) of the released code. `mask` forbids more. The dense queries cost
    T S / gamma scores.
    """
    if gamma < 1 or (dense_last or 0) < 0:
        raise ValueError(f"gamma, dense_last: {gamma}, {dense_last}; expected at least 1 and 0")
    T, S = q.shape[1], k.shape[1]
    if dense_last is None:
        dense_last = T % gamma + max(128, gamma)
    seen = masks.causal & mask
    if isinstance(sparse, masks.Mask):
        sparse_out = wide(attend(q, k, v, mask=seen & sparse, impl=impl))
    else:
        sparse_out = wide(sparse(q, k, v))
    of_all = runs.mask_of_tokens(seen, T, S)  # resolved for T queries, whichever are given

    def dense_rows(rows: np.ndarray) -> Out:
        return wide(attend(q[:, rows], k, v, mask=of_all, q_positions=rows, impl=impl))

    every = np.arange(0, T, gamma)
    dense = dense_rows(every)
    delta = jnp.repeat(dense - sparse_out[:, every], gamma, axis=1)[:, :T]
    sees_some = jnp.any(sparse_out != 0, axis=-1, keepdims=True)
    out = jnp.where(sees_some, sparse_out + delta, sparse_out).at[:, every].set(dense)
    if dense_last:
        last = np.arange(max(T - dense_last, 0), T)
        out = out.at[:, last].set(dense_rows(last))
    return out.astype(q.dtype)


OPS = (
    Op(
        delta_attention,
        papers=(103,),
        draw={"sparse": masks.window(1) | masks.sinks(1), "gamma": 4, "dense_last": 2},
        limits=(
            Limit("gamma = 1 is causal attention", {"gamma": 1}, causal_attention),
            Limit(
                "sparse attention that sees everything is not changed",
                {"sparse": masks.causal},
                causal_attention,
            ),
        ),
    ),
)
