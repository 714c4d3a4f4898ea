"""Clipped softmax and gated attention: their oracles, exact zeros, gates of one head and token."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.softmax_core import (
    clipped_softmax_attention,
    gated_attention,
    multi_head_attention,
)
from tests.helpers import near, qkv, weights_of
from tests.ops.plain import blend, sigmoid, softmax, weights
from tests.ops.softmax_core.test_multi_head import multi_head_attention_oracle

B, T, N, H = 2, 9, 4, 8


def clipped_softmax_attention_oracle(q, k, v, gamma, zeta, allowed=None):
    clipped = lambda x: np.clip((zeta - gamma) * softmax(x) + gamma, 0, 1)
    return blend(weights(q, k, allowed, clipped), v)


def gated_attention_oracle(q, k, v, gate, allowed=None):
    out = multi_head_attention_oracle(q, k, v, allowed)
    for b, i, n in np.ndindex(*gate.shape):
        out[b, i, n] *= sigmoid(gate[b, i, n])
    return out


def test_clipped_softmax_has_exact_zeros_that_pass_no_gradient():
    q, k, _ = qkv(B, T, N, H)
    clipped = lambda k, v: clipped_softmax_attention(q, k, v, gamma=-0.1)
    weights = weights_of(lambda q, k, v: clipped(k, v), q, k)
    soft = weights_of(multi_head_attention, q, k)
    assert (weights == 0).any() and (weights <= soft).all() and (weights[soft < 0.09] == 0).all()
    near(weights, np.maximum(1.1 * soft - 0.1, 0))
    eye = jnp.broadcast_to(jnp.eye(T)[None, :, None], (B, T, N, T))
    zeros = jnp.asarray(weights == 0).transpose(0, 2, 1, 3)
    grad = jax.grad(lambda k: jnp.where(zeros, clipped(k, eye), 0.0).sum())(k)
    assert (grad == 0).all()


def test_a_closed_gate_closes_its_own_head_and_token_only():
    q, k, v = qkv(B, T, N, H)
    gate = jnp.full((B, T, N), 100.0).at[1, 3, 2].set(-100.0)
    out = gated_attention(q, k, v, gate)
    near(out, multi_head_attention(q, k, v).at[1, 3, 2].set(0.0))
