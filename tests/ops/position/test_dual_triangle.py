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


def test_released_halves_in_another_order_are_released_attention():
    """Of all halves of heads in a row the first N look back, the others ahead."""
    q, k, v = qkv(B, T, N, H)
    halves = [np.float64(x).reshape(B, T, 2 * N, H // 2) for x in (q, k, v)]
    back, ahead = ([x[:, :, some] for x in halves] for some in (slice(N), slice(N, None)))
    past = causal(T, T)
    lower = blend(weights(*back[:2], past), back[2])
    upper = blend(weights(*ahead[:2], past.T), ahead[2])
    want = np.concatenate([lower, upper], axis=2)
    paired = (jnp.asarray(np.concatenate([x, y], -1)) for x, y in zip(back, ahead, strict=True))
    out = np.asarray(dual_triangle_attention(*paired))
    near(np.concatenate([out[..., : H // 2], out[..., H // 2 :]], axis=2), want)
    assert not np.allclose(dual_triangle_attention(q, k, v), want.reshape(B, T, N, H), atol=0.1)


def test_dual_triangle_refuses_an_odd_width():
    q, k, v = qkv(B, T, N, H)
    with pytest.raises(ValueError, match="v: width 7; expected an even width"):
        dual_triangle_attention(q, k, v[..., :7])
