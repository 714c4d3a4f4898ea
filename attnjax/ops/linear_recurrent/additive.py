"""Additive attention of LadaGAN: one pooled query for each head scales every key and value.

    a_t = softmax_t(w . q_t / sqrt(H)),    g = sum_t a_t q_t,    r_t = v_t * (k_t * g)

Paper: Morales-Juarez and Fuentes-Pineda, "Efficient generative adversarial networks using linear
additive-attention Transformers", 2024, arXiv:2401.09596.
Limits: w = 0 makes g the mean of the queries.
Differs: projections, the residual and the self-modulated layer norm around it belong to a layer.
"""

import math

import jax
import jax.numpy as jnp

from attnjax.core.numerics import divide, einsum, repeat_heads, wide
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Bool, Float, K, Out, Q, TokenK, TokenV, V


def additive_attention(
    q: Q, k: TokenK, v: TokenV, w: Float[Array, "N H"], *, valid: Bool[Array, "B T"] | None = None
) -> Out:
    """T = S and D = H; tokens that are not `valid` are left out of g, whatever they hold."""
    if valid is None:
        valid = jnp.ones(q.shape[:2], bool)
    pooled = valid[:, :, None]
    queries = jnp.where(pooled[..., None], wide(q), 0.0)
    scores = einsum("BTNH,NH->BTN", queries, w) / math.sqrt(q.shape[3])
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=1, keepdims=True))
    e = jnp.where(pooled, jnp.exp(scores - largest), 0.0)
    a = divide(e, e.sum(axis=1, keepdims=True))
    g = einsum("BTN,BTNH->BNH", a, queries)[:, None]
    keys, values = repeat_heads(wide(k), q), repeat_heads(wide(v), q)
    return (values * (keys * g)).astype(v.dtype)


def _with_the_mean(q: Q, k: K, v: V) -> Out:
    return q.mean(axis=1, keepdims=True) * repeat_heads(k, q) * repeat_heads(v, q)


OPS = (
    Op(
        additive_attention,
        papers=(274,),
        reads="all",
        limits=(Limit("w = 0 makes g the mean of the queries", {"w": fill(0.0)}, _with_the_mean),),
    ),
)
