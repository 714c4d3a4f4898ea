"""Multi-token attention: oracles of loops, one key's kernel as a scale, and two keys found."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.softmax_core import multi_token_attention
from attnjax.ops.softmax_core.multi_head import causal_attention
from tests.helpers import draw, near, qkv
from tests.ops.plain import blend, causal, kv, softmax, visible

B, T, N, H = 2, 9, 4, 8


def convolved(x, kernel, ok):
    """Query i - a of the kernel's queries, oldest first, and key j + b - c; zero outside."""
    (B, N, T, S), (_, A, C) = x.shape, kernel.shape
    out = np.zeros(x.shape)
    for b, n, i, j, a, e in np.ndindex(B, N, T, S, A, C):
        row, column = i - (A - 1 - a), j + e - C // 2
        if 0 <= row and 0 <= column < S and ok[b, n, row, column]:
            out[b, n, i, j] += kernel[n, a, e] * x[b, n, row, column]
    return out


def scores_of(q, k, allowed):
    (B, T, N, H), S = q.shape, k.shape[1]
    allowed = causal(T, S) if allowed is None else allowed
    ok = np.zeros((B, N, T, S), bool)
    s = np.zeros((B, N, T, S))
    for b, n, i in np.ndindex(B, N, T):
        ok[b, n, i, visible(allowed, b, n, i, S)] = True
        s[b, n, i] = k[b, :, kv(q, k, n)] @ q[b, i, n] / np.sqrt(H)
    return s, ok


def softmax_rows(x, ok):
    w = np.zeros(x.shape)
    for at in np.ndindex(*x.shape[:3]):
        if ok[at].any():
            w[at][ok[at]] = softmax(x[at][ok[at]])
    return w


def multi_token_attention_oracle(q, k, v, kernel, allowed=None):
    s, ok = scores_of(q, k, allowed)
    return blend(softmax_rows(convolved(s, kernel, ok), ok), v)


def multi_token_attention_full_oracle(q, k, v, kernel, mix_scores, kernel_after, mix, allowed=None):
    s, ok = scores_of(q, k, allowed)
    mixed = np.tensordot(mix_scores.T, convolved(s, kernel, ok), (1, 1)).swapaxes(0, 1)
    w = convolved(softmax_rows(mixed, ok), kernel_after, ok)
    w = np.tensordot(mix.T, w, (1, 1)).swapaxes(0, 1)
    return blend(np.where(ok, w, 0), v)


def test_a_kernel_of_one_pair_scales_the_scores():
    q, k, v = qkv(B, T, N, H)
    tau = draw(N, 1, 1, seed=4)
    near(multi_token_attention(q, k, v, tau), causal_attention(tau[..., 0] * q, k, v))
    with pytest.raises(ValueError, match="odd number C"):
        multi_token_attention(q, k, v, jnp.ones((N, 2, 4)))


def test_a_kernel_finds_two_keys_in_a_row():
    """Two queries ask for one letter each; the key after which the second follows is found."""
    letters = jnp.eye(4)
    text = jnp.asarray([0, 1, 2, 1, 3, 0, 2, 1])  # 2 then 1: at 2, 3 and at 6, 7
    asked = jnp.asarray([2, 1])  # the last two queries
    k = letters[text][None, :, None]
    q = jnp.zeros((1, 8, 1, 4)).at[0, 6:, 0].set(letters[asked])
    kernel = jnp.zeros((1, 2, 3)).at[0, 0, 0].set(50.0).at[0, 1, 1].set(50.0)
    place = jnp.arange(8.0)[None, :, None, None]
    found = multi_token_attention(q, k, place, kernel)[0, -1, 0, 0]
    near(found, (3 + 7) / 2, 1e-4)  # the second letters of both
