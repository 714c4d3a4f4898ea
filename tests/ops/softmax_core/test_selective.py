"""Selective attention: its oracle, and what selection spares."""

import jax.numpy as jnp
import numpy as np

from attnjax import masks
from attnjax.ops.softmax_core import multi_head_attention, selection, selective_attention
from tests.helpers import near, qkv
from tests.ops.plain import blend, causal, kv, visible, weights

B, T, N, H = 2, 9, 4, 8


def selective_attention_oracle(q, k, v, allowed=None):
    (B, T, _, H), S = q.shape, k.shape[1]
    allowed = causal(T, S) if allowed is None else allowed
    F = np.zeros((B, T, S))
    for b in range(B):
        for i in range(T):
            for earlier in range(i):
                for j in visible(allowed, b, 0, earlier, S):
                    if j not in (0, earlier):  # the first token and the query itself stay
                        F[b, i, j] += max(0.0, q[b, earlier, 0] @ k[b, j, 0] / np.sqrt(H))
    score = lambda b, n, i, j: q[b, i, n] @ k[b, j, kv(q, k, n)] / np.sqrt(H) - F[b, i, j]
    return blend(weights(q, k, allowed, logit=score), v)


def test_selection_grows_and_spares_the_first_token_and_the_asking_one():
    q, k, v = qkv(B, T, N, H)
    F = np.asarray(selection(q, k))
    assert (np.diff(F, axis=1) >= 0).all() and F.max() > 0
    assert (F[:, :, 0] == 0).all()
    for later in (0, 1):  # neither the query now nor the one before asks to forget itself
        assert (np.diagonal(F, offset=-later, axis1=1, axis2=2) == 0).all()
    modest = q.at[:, :, 0].set(0.0)  # head 0 asks for nothing
    near(selective_attention(modest, k, v), multi_head_attention(modest, k, v, mask=masks.causal))
    plain = multi_head_attention(q, k, v, mask=masks.causal)
    assert jnp.abs(selective_attention(q, k, v) - plain)[:, :, 1:].max() > 0.01
