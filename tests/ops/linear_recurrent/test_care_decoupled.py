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
    (B, T, _), (_, d1, N, H) = x.shape, weights.qk.shape
    q, k = (
        np.tensordot(x[..., :d1], w, 1) + b
        for w, b in zip(weights.qk, weights.qk_bias, strict=True)
    )
    v = x[..., :d1].reshape(B, T, N, H)
    far = weighted(q, k, v, lambda x, y: elu1(x) @ elu1(y), causal=False)
    out = np.zeros(x.shape)
    out[..., :d1] = far.reshape(B, T, d1)
    half = weights.small.shape[-1]
    for b in range(B):
        cells = x[b].reshape(*shape, -1)
        small = depthwise(cells[..., d1 : d1 + half], weights.small) + weights.small_bias
        large = depthwise(cells[..., d1 + half :], weights.large) + weights.large_bias
        out[b, :, d1:] = np.concatenate([small, large], -1).reshape(T, -1)
    return out


def test_decoupled_channels_are_linear_attention_or_convolutions_alone():
    x = draws((B, 12, 8))[0]
    w, bias = draws((2, 8, 2, 4), (2, 2, 4))
    none = jnp.zeros((3, 3, 0)), jnp.zeros(0)
    q, k = jnp.einsum("btc,pcnh->pbtnh", x, w) + bias[:, None, None]
    q, k, v = features.elu1(q), features.elu1(k), x.reshape(B, 12, 2, 4)
    want = linear_attend(q, k, v, normalize=normalizers.divide, block=None)
    only_far = decoupled_attention(x, Decoupled(w, bias, *none, *none), shape=(3, 4))
    near(only_far, want.reshape(B, 12, 8), 1e-4)

    one = jnp.zeros((3, 3, 4)).at[1, 2].set(1.0)  # the right neighbor
    no_qk = jnp.zeros((2, 0, 1, 0)), jnp.zeros((2, 1, 0))
    weights = Decoupled(*no_qk, one, jnp.zeros(4), 2 * one, jnp.ones(4))
    local = decoupled_attention(x, weights, shape=(3, 4))
    grid, moved = x.reshape(B, 3, 4, 8), local.reshape(B, 3, 4, 8)
    scale, shift = jnp.asarray([1.0] * 4 + [2.0] * 4), jnp.asarray([0.0] * 4 + [1.0] * 4)
    near(moved[:, :, :-1], scale * grid[:, :, 1:] + shift)
    near(moved[:, :, -1], jnp.broadcast_to(shift, moved[:, :, -1].shape))


def test_linear_attention_on_fewer_channels_costs_the_square_of_their_share():
    def flops(d1):
        x = jnp.zeros((1, 64, 64))
        half = jnp.zeros((3, 3, (64 - d1) // 2)), jnp.zeros((64 - d1) // 2)
        weights = Decoupled(jnp.zeros((2, d1, 1, d1)), jnp.zeros((2, 1, d1)), *half, *half)
        run = jax.jit(lambda x: decoupled_attention(x, weights, shape=(8, 8)))
        near = 2 * 9 * 64 * (64 - d1)
        return run.lower(x).compile().cost_analysis()["flops"] - near

    assert 2.5 < flops(32) / flops(16) < 5
