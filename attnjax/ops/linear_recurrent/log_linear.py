"""Log-linear attention: a query weighs the past in blocks that double with their age.

    o_t = sum_l scale_t,l q_t . S_t,l,    S_t,l = sum_{j in block l of t} a_{j+1} .. a_t k_j v_j^T

Block 0 of t is t alone; block l > 0 holds 2^(l-1) tokens where bit l-1 of t is set: those of its
aligned block of 2^l that come before t's half of it, as in a Fenwick tree. a_t = exp(log_decay_t).

Paper: Guo, Yang, Goel, Xing, Dao and Kim, "Log-Linear Attention", 2025, arXiv:2506.04761, in its
form for Mamba-2.
Limits: scales of 1 make it simple_gla.
Differs: the scales of levels, softplus of a projection, come from the layer. States are not carried
from call to call. Work and memory are O(T log T): one run of the engine over a copy of the tokens
for each level.
"""

import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.recurrence.linear import Impl, linear_attend
from attnjax.core.sharding import cumsum, on_any_mesh, sharding_of
from attnjax.op import Limit, Op, fill, log_gates, uniform
from attnjax.ops.linear_recurrent.simple_gla import simple_gla
from attnjax.typing import Array, Float, Out, PerQuery, Q, TokenK, TokenV


@on_any_mesh
def log_linear_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_decay: PerQuery,
    scales: Float[Array, "B T N R"],
    *,
    impl: Impl = None,
) -> Out:
    """Linear attention whose weights are scaled by the level at which a key lies before its query.

    scales[..., l] is that of level l; R is at least 1 + ceil(log2(T)).

    Raises ValueError where R is less.
    """
    (B, T), R = q.shape[:2], scales.shape[-1]
    length = sharding_of(impl).lengths(T, T)[0]
    levels = np.arange(1, 1 + (length - 1).bit_length())
    if R <= len(levels):
        raise ValueError(
            f"log_linear_attention: scales has R = {R}, expected at least {1 + len(levels)} levels "
            f"for T = {length}"
        )
    at = cumsum(jnp.ones((1, T), jnp.int32), impl) - 1
    own = jnp.sum(wide(q) * repeat_heads(wide(k), q), axis=-1) * scales[..., 0]
    out = own[..., None] * repeat_heads(wide(v), q)
    if len(levels):
        halves = at >> (levels[:, None] - 1)  # (levels,T): the half of a block that a token is in
        late = (halves % 2)[:, None, :, None, None].astype(scales.dtype)
        of_levels = jnp.moveaxis(scales[..., 1 : 1 + len(levels)], -1, 0)[..., None]
        each = lambda x: jnp.broadcast_to(x, (len(levels), *x.shape[-4:]))
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        read = linear_attend(
            flat(late * of_levels * wide(q)[None]),
            flat((1 - late) * wide(k)[None]),
            flat(each(wide(v))),
            log_decay=flat(each(log_decay[..., None]))[..., 0],
            documents=jnp.repeat(halves >> 1, B, axis=0),
            impl=impl,
        )
        out = out + jnp.sum(read.reshape(len(levels), B, *read.shape[1:]), axis=0)
    return out.astype(v.dtype)


OPS = (
    Op(
        log_linear_attention,
        draw={"log_decay": log_gates, "scales": uniform(0.2, 1.5)},
        limits=(
            Limit(
                "scales of 1 make it simple_gla",
                {"scales": fill(1.0)},
                simple_gla,
            ),
        ),
    ),
)
