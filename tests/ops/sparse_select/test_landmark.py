"""Landmark attention: its oracle, landmarks put in and taken out, what weight they pass on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.sparse_select import insert_landmarks, landmark_attention, remove_landmarks
from tests.helpers import draws, exact, near, qkv, weights_of
from tests.ops.plain import blend, causal_too, landmark_weights

B, T, N, K, H = 2, 19, 4, 2, 8  # tokens: four blocks of three and a landmark, and three more


def landmark_attention_oracle(q, k, v, block, allowed=None):
    return blend(landmark_weights(q, k, block, causal_too(q, k, allowed)), v)


def test_landmarks_stand_behind_their_blocks_and_come_out_again():
    ids = jnp.arange(8)[None] + 10
    assert insert_landmarks(ids, 3, 7).tolist() == [[10, 11, 12, 7, 13, 14, 15, 7, 16, 17]]
    tokens, landmark = draws((B, 9, H), (H,))
    inserted = insert_landmarks(tokens, 3, landmark)
    assert inserted.shape == (B, 12, H)
    assert np.array_equal(inserted[:, [3, 7, 11]], np.broadcast_to(landmark, (B, 3, H)))
    assert np.array_equal(remove_landmarks(inserted, 3), tokens)
    assert insert_landmarks(ids[:, :2], 3, 7).tolist() == [[10, 11]]


def test_landmarks_have_no_weight_and_pass_theirs_to_their_blocks():
    q, k, _ = qkv(B, T, N, H, K=K)
    w = weights_of(functools.partial(landmark_attention, block=3), q, k)
    near(w.sum(-1), np.ones((B, N, T)))
    assert not w[..., 3::4].any()
    # a landmark liked more takes attention from all other blocks, in their proportions
    liked = weights_of(
        functools.partial(landmark_attention, block=3), q, k.at[:, 3].add(q[:, 18, ::2])
    )[:, ::2, 18]
    before = w[:, ::2, 18]
    assert (liked[..., :3] > before[..., :3]).all()
    near(liked[..., 4:].sum(-1) / before[..., 4:].sum(-1), liked[..., 18] / before[..., 18])
    near(liked[..., 0] / liked[..., 1], before[..., 0] / before[..., 1], 1e-4)


def test_landmark_weights_and_their_gradients_stand_large_scores():
    q, k, v = qkv(B, T, N, H, K=K)
    big = q.at[:, ::2].multiply(1e4)
    op = lambda q, k, v: landmark_attention(q, k, v, block=3)
    value, grad = jax.value_and_grad(lambda *x: op(*x).sum(), argnums=(0, 1, 2))(big, k, v)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grad)
    near(op(big, k, v), landmark_attention_oracle(*exact((big, k, v)), 3), 1e-4)
