"""Dual triangle attention: its oracle, which way each half looks, odd widths."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.position import dual_triangle_attention
from tests.helpers import near, qkv
from tests.ops.plain import blend, both, causal, weights

B, T, N, H = 2, 9, 4, 8


def dual_triangle_attention_oracle(q, k, v, allowed=None):
    T, S = q.shape[1], k.shape[1]
    h, d = q.shape[-1] // 2, v.shape[-1] // 2
    past = causal(T, S)
    future = np.array([[j >= i for j in range(S)] for i in range(T)])
    lower = blend(weights(q[..., :h], k[..., :h], both(allowed, past)), v[..., :d])
    upper = blend(weights(q[..., h:], k[..., h:], both(allowed, future)), v[..., d:])
    return np.concatenate([lower, upper], axis=-1)


def test_dual_triangle_halves_look_one_way_each():
    past, other = qkv(B, T, N, H), qkv(B, T, N, H, seed=1)
    mixed = [
        jnp.concatenate([a[:, :5], b[:, 5:]], axis=1) for a, b in zip(past, other, strict=True)
    ]
    a, b = dual_triangle_attention(*past), dual_triangle_attention(*mixed)
    near(a[:, :5, :, : H // 2], b[:, :5, :, : H // 2], 1e-6)
    assert (jnp.abs(a - b)[:, :5, :, H // 2 :].max((1, 3)) > 0.01).all()
    swap = lambda x: jnp.concatenate([x[..., H // 2 :], x[..., : H // 2]], axis=-1)[:, ::-1]
    near(swap(dual_triangle_attention(*(swap(x) for x in past))), a)


def test_dual_triangle_refuses_an_odd_width():
    q, k, v = qkv(B, T, N, H)
    with pytest.raises(ValueError, match="v: width 7; expected an even width"):
        dual_triangle_attention(q, k, v[..., :7])
