"""Pointer networks: the oracle, symmetry, luong_concat of their weights, used inputs."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.softmax_core import luong_concat, pointer_attention, unused
from tests.helpers import draws, near, qkv
from tests.ops.plain import kv, weights

B, T, N, H = 2, 9, 4, 8


def pointer_attention_oracle(q, k, w_query, w_key, w_score, allowed=None):
    def score(b, n, i, j):
        return w_score @ np.tanh(w_key.T @ k[b, j, kv(q, k, n)] + w_query.T @ q[b, i, n])

    return weights(q, k, allowed, logit=score)


def test_pointers_follow_their_inputs_and_avoid_used_ones():
    q, k, v = qkv(B, T, N, H)
    w_query, w_key, w_score = draws((H, 5), (H, 5), (5,), seed=1)
    p = pointer_attention(q, k, w_query, w_key, w_score)
    near(p.sum(-1), np.ones((B, N, T)))
    order = np.random.default_rng(0).permutation(T)
    near(pointer_attention(q, k[:, order], w_query, w_key, w_score), p[..., order])
    blended = jnp.einsum("BNTS,BSND->BTND", p, v)
    near(blended, luong_concat(q, k, v, w_query, w_key, w_score))

    chosen = jnp.stack([jnp.arange(T), jnp.arange(T)[::-1]])
    p = pointer_attention(q, k, w_query, w_key, w_score, mask=unused(chosen, T))
    for step in range(T):
        assert (p[0, :, step, :step] == 0).all() and (p[1, :, step, T - step :] == 0).all()
        assert (p[0, :, step, step:] > 0).all() and (p[1, :, step, : T - step] > 0).all()
