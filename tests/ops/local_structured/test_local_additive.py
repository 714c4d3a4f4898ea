"""Local additive attention: the oracle, frames of zeros, the form without them."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import masks
from attnjax.ops.local_structured import local_additive_attention
from attnjax.ops.softmax_core import luong_concat
from tests.helpers import draw, near, qkv, weights_of
from tests.ops.plain import heads, softmax


def local_additive_attention_oracle(q, k, v, weight, radius=30):
    (B, T, N), out = q.shape[:3], np.zeros((*q.shape[:3], v.shape[-1]))
    fill = lambda x: np.pad(heads(x, N), ((0, 0), (radius, radius), (0, 0), (0, 0)))
    k, v = fill(k), fill(v)
    for b, t, n in np.ndindex(B, T, N):
        frames = range(t, t + 2 * radius + 1)  # t + radius is the frame itself
        scores = [weight[n] @ np.tanh(q[b, t, n] + k[b, j, n]) for j in frames]
        w = softmax(np.array(scores))
        out[b, t, n] = sum(a * v[b, j, n] for a, j in zip(w, frames, strict=True))
    return out


def test_frames_of_zeros_take_weight_at_the_ends():
    q, k, _ = qkv(1, 12, 2, 8)
    sums = weights_of(local_additive_attention, q, k, draw(2, 8, seed=3), radius=2)[0].sum(-1)
    assert (sums[:, [0, 1, 10, 11]] < 0.999).all()
    near(sums[:, 2:10], np.ones((2, 8)))


def test_inside_it_is_windowed_additive_attention():
    q, k, v = qkv(1, 12, 2, 8)
    w = jnp.broadcast_to(draw(8, seed=3), (2, 8))
    eye = jnp.eye(8)
    got = local_additive_attention(q, k, v, w, radius=2)
    want = luong_concat(q, k, v, eye, eye, w[0], mask=masks.window(2, 2))
    near(got[:, 2:10], want[:, 2:10])


def test_a_negative_radius_is_refused():
    with pytest.raises(ValueError, match="radius: -1; expected at least 0"):
        local_additive_attention(*qkv(1, 12, 2, 8), draw(2, 8), radius=-1)
