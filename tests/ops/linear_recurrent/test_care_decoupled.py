"""Decoupled channels of CARE: their oracle; either half alone; what they cost."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import features, linear_attend, normalizers
from attnjax.ops.linear_recurrent import Decoupled, decoupled_attention
from tests.helpers import draws, near
from tests.ops.plain import depthwise, elu1, weighted

B = 2


def decoupled_attention_oracle(x, weights, shape):
    (B, T, _), d1 = x.shape, weights.qkv.shape[1]
    q, k, v = (np.tensordot(x[..., :d1], w, 1) for w in weights.qkv)
    far = weighted(q, k, v, lambda x, y: elu1(x) @ elu1(y), causal=False)
    out = np.zeros(x.shape)
    out[..., :d1] = far.reshape(B, T, d1)
    half = weights.small.shape[-1]
    for b in range(B):
        cells = x[b].reshape(*shape, -1)
        small = depthwise(cells[..., d1 : d1 + half], weights.small)
        large = depthwise(cells[..., d1 + half :], weights.large)
        out[b, :, d1:] = np.concatenate([small, large], -1).reshape(T, -1)
    return out


def test_decoupled_channels_are_linear_attention_or_convolutions_alone():
    x = draws((B, 12, 8))[0]
    w = draws((3, 8, 2, 4))[0]
    none = jnp.zeros((3, 3, 0))
    q, k, v = jnp.einsum("btc,pcnh->pbtnh", x, w)
    want = linear_attend(
        features.elu1(q), features.elu1(k), v, normalize=normalizers.divide, block=None
    )
    only_far = decoupled_attention(x, Decoupled(w, none, none), shape=(3, 4))
    near(only_far, want.reshape(B, 12, 8), 1e-4)

    one = jnp.zeros((3, 3, 4)).at[1, 2].set(1.0)  # the right neighbor
    local = decoupled_attention(x, Decoupled(jnp.zeros((3, 0, 1, 0)), one, 2 * one), shape=(3, 4))
    grid, moved = x.reshape(B, 3, 4, 8), local.reshape(B, 3, 4, 8)
    scale = jnp.asarray([1.0] * 4 + [2.0] * 4)
    near(moved[:, :, :-1], scale * grid[:, :, 1:])
    assert not np.any(moved[:, :, -1])


def test_linear_attention_on_fewer_channels_costs_the_square_of_their_share():
    def flops(d1):
        x = jnp.zeros((1, 64, 64))
        weights = Decoupled(jnp.zeros((3, d1, 1, d1)), *[jnp.zeros((3, 3, (64 - d1) // 2))] * 2)
        run = jax.jit(lambda x: decoupled_attention(x, weights, shape=(8, 8)))
        near = 2 * 9 * 64 * (64 - d1)
        return run.lower(x).compile().cost_analysis()["flops"] - near

    assert 2.5 < flops(32) / flops(16) < 5
