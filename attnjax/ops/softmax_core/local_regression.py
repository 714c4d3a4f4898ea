"""Local linear attention: each query fits a line to the values near it and reads it at itself.

    w_ij = softmax_j(q_i . k_j / sqrt(H));  kbar_i, vbar_i the means of k and v under w_ij
    C_i = sum_j w_ij (k_j - kbar_i)(k_j - kbar_i)^T,    D_i = sum_j w_ij (k_j - kbar_i) v_j^T
    out_i = vbar_i + (q_i - kbar_i)^T (C_i + ridge I)^-1 D_i

This is the constant of the ridge regression of v_j on (1, k_j - q_i) with weights w_ij. The means
of v, k, k k^T and k v^T are one attention whose values are these.

Paper: Zuo et al., "Local Linear Attention: An Optimal Interpolation of Linear and Softmax Attention
For Test-Time Regression", 2025, arXiv:2510.01450.
Limits: a large ridge is softmax attention; values that are affine in the keys are reproduced as
ridge -> 0.
Differs: the paper writes Sigma_i = sum_j w_ij (k_j - q_i)(k_j - q_i)^T + ridge, with weights that
do not sum to one, and divides by 1 - mu . Sigma^-1 mu; this is the same by the Sherman-Morrison
identity, and divides by nothing that may vanish, so there is no 1e-6 in it. The released kernels
solve by conjugate gradients in O(T H) memory; moments take O(T H (H + D)).
"""

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import aligned, einsum, finite, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, K, Out, Q, V


@on_any_mesh
def local_regression_attention(
    q: Q,
    k: K,
    v: V,
    ridge: Float[Array, ""] | float = 0.01,
    *,
    mask: masks.Mask = masks.causal,
    impl: Impl = None,
) -> Out:
    """Softmax attention corrected to first order in q - kbar; weights sum to one, of any sign.

    `ridge` > 0 is a number; the larger, the closer to softmax. Time O(T S H (H + D)).
    """
    H, D = q.shape[-1], v.shape[-1]
    keys, values = finite(k), finite(v)
    products = einsum("BSKH,BSKX->BSKHX", keys, jnp.concatenate([keys, values], axis=-1))
    flat = products.reshape(*k.shape[:3], H * (H + D))
    terms = jnp.concatenate([wide(v), keys, flat], axis=-1)
    means = attend(wide(q), wide(k), terms, mask=mask, impl=impl)
    v_mean, k_mean, flat = jnp.split(means, [D, D + H], axis=-1)
    # A row that sees a NaN has it in all its means; it must not reach the solver's derivative.
    clean = finite(flat).reshape(*q.shape[:3], H, H + D)
    both = jnp.concatenate([finite(k_mean), finite(v_mean)], axis=-1)
    moments = clean - finite(k_mean)[..., None] * both[..., None, :]
    system = moments[..., :H] + aligned(ridge * jnp.eye(H, dtype=moments.dtype), moments)
    away = finite(q) - finite(k_mean)
    slope = _solve(system, away)
    out = v_mean + einsum("BTNH,BTNHD->BTND", slope, moments[..., H:])
    return out.astype(q.dtype)


def _solve(system: Float[Array, "B T N H H"], b: Float[Array, "B T N H"]) -> Array:
    """In float32 at least: there is no solver of narrower numbers."""
    dtype = jnp.promote_types(b.dtype, jnp.float32)
    x = jnp.linalg.solve(system.astype(dtype), b.astype(dtype)[..., None])
    return x[..., 0].astype(b.dtype)


OPS = (
    Op(
        local_regression_attention,
        papers=(46,),
        draw={"ridge": 0.2},
        limits=(Limit("a large ridge is softmax attention", {"ridge": 1e7}, causal_attention),),
    ),
)
