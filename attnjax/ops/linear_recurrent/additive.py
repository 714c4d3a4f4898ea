"""Additive attention of LadaGAN: one pooled query for each head scales every key and value.

    a_tn = softmax_t(w_n . q_t / sqrt(H)),    g_n = sum_t a_tn q_tn,    r_tn = v_tn * (k_tn * g_n)

with q_t the queries of all heads of token t, q_tn that of head n.

Paper: Morales-Juarez and Fuentes-Pineda, "Efficient generative adversarial networks using linear
additive-attention Transformers", 2024, arXiv:2401.09596.
Limits: w = 0 makes g the mean of the queries; weights for a head's own channels alone make
additive_attention the one by_head.
Differs: the released code scores a token for a head by the queries of all its heads; `by_head`,
one vector of H weights for each head, by that head's alone, as its formula reads.  The bias of the
scores cancels; projections, the residual and the self-modulated layer norm around it belong to a
layer.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import divide, einsum, repeat_heads, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted, fill
from attnjax.typing import Array, Bool, Float, K, Out, Q, TokenK, TokenV, V


@on_any_mesh
def additive_attention(
    q: Q, k: TokenK, v: TokenV, w: Float[Array, "N N H"], *, valid: Bool[Array, "B T"] | None = None
) -> Out:
    """T = S and D = H; w[n] weighs the channels of all heads for the pooling of head n.

    Tokens that are not `valid` are left out of g, whatever they hold.
    """
    queries, pooled = _valid(q, valid)
    return _scaled_by(_pool(queries, einsum("BTmH,NmH->BTN", queries, w), pooled), q, k, v)


@on_any_mesh
def additive_attention_by_head(
    q: Q, k: TokenK, v: TokenV, w: Float[Array, "N H"], *, valid: Bool[Array, "B T"] | None = None
) -> Out:
    """Each head pools its queries by a vector of its own, `w[n]`."""
    queries, pooled = _valid(q, valid)
    return _scaled_by(_pool(queries, einsum("BTNH,NH->BTN", queries, w), pooled), q, k, v)


def _valid(q: Q, valid: Bool[Array, "B T"] | None) -> tuple[Q, Bool[Array, "B T 1"]]:
    """The queries, wide, zeros where a token is not valid, and which are."""
    pooled = jnp.ones((*q.shape[:2], 1), bool) if valid is None else valid[:, :, None]
    return jnp.where(pooled[..., None], wide(q), 0.0), pooled


def _pool(
    queries: Q, scores: Float[Array, "B T N"], pooled: Bool[Array, "B T 1"]
) -> Float[Array, "B 1 N H"]:
    """g, by the softmax of scores / sqrt(H) over the tokens that are pooled."""
    scores = scores / math.sqrt(queries.shape[3])
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=1, keepdims=True))
    e = jnp.where(pooled, jnp.exp(scores - largest), 0.0)
    a = divide(e, e.sum(axis=1, keepdims=True))
    return einsum("BTN,BTNH->BNH", a, queries)[:, None]


def _scaled_by(g: Float[Array, "B 1 N H"], q: Q, k: K, v: V) -> Out:
    keys, values = repeat_heads(wide(k), q), repeat_heads(wide(v), q)
    return (values * (keys * g)).astype(v.dtype)


def _with_the_mean(q: Q, k: K, v: V) -> Out:
    return q.mean(axis=1, keepdims=True) * repeat_heads(k, q) * repeat_heads(v, q)


def _own_channels(w: Float[Array, "N N H"]) -> Float[Array, "N N H"]:
    return w * np.eye(len(w))[..., None]


def _by_own_head(q: Q, k: K, v: V, w: Float[Array, "N N H"]) -> Out:
    own = np.arange(len(w))
    return additive_attention_by_head(q, k, v, w[own, own])


_MEAN = Limit("w = 0 makes g the mean of the queries", {"w": fill(0.0)}, _with_the_mean)

OPS = (
    Op(
        additive_attention,
        papers=(274,),
        reads="all",
        limits=(
            _MEAN,
            Limit("weights for own channels alone", {"w": adjusted(_own_channels)}, _by_own_head),
        ),
    ),
    Op(additive_attention_by_head, papers=(274,), reads="all", limits=(_MEAN,)),
)
