"""Decoupled target attention: its oracle, and which table gets a gradient from what."""

import jax
import numpy as np

from attnjax.ops.multihead_structure import decoupled_target_attention
from tests.helpers import draws, near, weights_of
from tests.ops.plain import blend, kv, softmax, weights


def decoupled_target_attention_oracle(q, k, v, q_time, k_time, top_k, allowed=None):
    def score(b, n, i, j):
        g = kv(q, k, n)
        of_item = q[b, i, n] @ k[b, j, g] / np.sqrt(q.shape[-1])
        return of_item + q_time[b, i, n] @ k_time[b, j, g] / np.sqrt(q_time.shape[-1])

    def kept(s):
        out = np.zeros(len(s))
        best = np.argsort(-s)[:top_k]
        out[best] = softmax(s[best])
        return out

    return blend(weights(q, k, allowed, normalize=kept, logit=score), v)


def test_weights_of_what_is_kept_sum_to_one():
    q, k, q_time, k_time = draws((2, 1, 1, 6), (2, 9, 1, 6), (2, 1, 1, 3), (2, 9, 1, 3))
    w = weights_of(decoupled_target_attention, q, k, q_time, k_time, top_k=4)
    near(w.sum(-1), np.ones((2, 1, 1)))
    assert ((w > 0).sum(-1) == 4).all()


def test_what_is_not_kept_has_no_gradient():
    q, k, v, q_time, k_time = draws(
        (1, 1, 1, 6), (1, 9, 1, 6), (1, 9, 1, 4), (1, 1, 1, 3), (1, 9, 1, 3)
    )
    w = weights_of(decoupled_target_attention, q, k, q_time, k_time, top_k=4)[0, 0, 0] > 0
    loss = lambda k, v: decoupled_target_attention(q, k, v, q_time, k_time, top_k=4)[..., 0].sum()
    for grad in jax.jit(jax.grad(loss, (0, 1)))(k, v):
        np.testing.assert_array_equal(np.asarray(grad)[0, :, 0].any(-1), w)
