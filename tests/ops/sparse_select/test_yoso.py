"""YOSO: its oracles, weights of equal and opposite vectors, gradients, samples that converge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import features
from attnjax.ops.sparse_select import yoso, yoso_sampled
from tests.helpers import draw, exact, near, qkv, run
from tests.ops.plain import blend, kv, unit, weights

B, T, N, K, H = 2, 9, 4, 2, 8


def yoso_oracle(q, k, v, tau=8, allowed=None):
    def chance(b, n, i, j):
        cosine = unit(q[b, i, n]) @ unit(k[b, j, kv(q, k, n)])
        return (1 - np.arccos(np.clip(cosine, -1, 1)) / np.pi) ** tau

    return direction(blend(weights(q, k, allowed, lambda x: x, chance), v))


def yoso_sampled_oracle(q, k, v, planes):
    def share(b, n, i, j):
        sides = lambda x: [tuple(x @ p > 0) for p in planes]
        pairs = zip(sides(q[b, i, n]), sides(k[b, j, kv(q, k, n)]), strict=True)
        return np.mean([x == y for x, y in pairs])

    return direction(blend(weights(q, k, None, lambda x: x, share), v))


def direction(u):
    length = np.sqrt((u**2).sum(-1, keepdims=True))
    return np.where(length > 0, u / np.where(length > 0, length, 1), 0)


def test_weights_fall_with_the_angle_from_one_to_zero():
    """Keys at angles pi x / 4 from the query, each beside one at angle 0: the ratio is w itself."""
    turns = np.arange(5) / 4
    k = jnp.stack([jnp.cos(np.pi * turns), jnp.sin(np.pi * turns)], -1)[:, None, None]
    k = jnp.concatenate([k, jnp.zeros_like(k).at[..., 0].set(2.0)], 1)
    q = jnp.zeros((5, 1, 1, 2)).at[..., 0].set(3.0)
    v = jnp.broadcast_to(jnp.eye(2)[None, :, None], (5, 2, 1, 2))
    out = run(yoso, q, k, v, tau=3)[:, 0, 0]
    near(out[:, 0] / out[:, 1], (1 - turns) ** 3)


def test_gradients_are_those_of_the_released_code():
    """grad q = ((g V^T) W) tau/2 k, of vectors of length 1, also where q is a key."""
    q, k, v = qkv(1, T, 1, H)
    q, k = features.cosine(q), features.cosine(k)
    q = q.at[:, 0].set(k[:, 0])
    slope = run(jax.grad(lambda q: jnp.sin(3 * yoso(q, k, v, tau=5)).sum()), q)
    q, k, v = exact((q[0, :, 0], k[0, :, 0], v[0, :, 0]))
    w = (1 - np.arccos(np.clip(q @ k.T, -1, 1)) / np.pi) ** 5
    u = jnp.asarray(w @ v)
    g = exact(jax.grad(lambda u: jnp.sin(3 * features.cosine(u)).sum())(u))
    want = ((g @ v.T) * w) @ (2.5 * k)
    want -= q * (q * want).sum(-1, keepdims=True)
    near(slope[0, :, 0], want, 2e-3)  # arccos near 1


def test_samples_come_near_with_the_root_of_their_number():
    q, k, v = qkv(1, 6, 2, 4)
    true = run(yoso, q, k, v, tau=2)
    off = lambda M: np.abs(run(yoso_sampled, q, k, v, draw(M, 4, 2)) - true).max()
    few, many = off(30), off(30 * 256)
    assert many < few / 8 and many < 0.05


@pytest.mark.parametrize("shape", [(H, 2), (3, 5, 2), (3, H, 17)])
def test_shapes_of_planes(shape):
    with pytest.raises(ValueError, match=r"planes: shape .*; expected \(M,H,R\) with H = 8"):
        yoso_sampled(*qkv(B, T, N, H, K=K), jnp.zeros(shape))


def test_no_planes():
    with pytest.raises(ValueError, match="tau: 0; expected at least 1"):
        yoso(*qkv(B, T, N, H, K=K), tau=0)
