"""Attention by transport: the oracle scales a matrix; marginals, gauge and roles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.softmax_core import (
    multi_prompt_score_map,
    multi_prompt_sinkhorn_attention,
    sinkhorn_attention,
)
from tests.helpers import draw, exact, near, qkv
from tests.ops.plain import blend, kv, unit

B, T, S, N, H = 2, 6, 9, 2, 8


def plan(scores, rounds):
    """exp(scores), its columns scaled to sum to T / S, then its rows to sum to one, in rounds."""
    x = np.exp(scores)
    for _ in range(rounds):
        x = x / x.sum(0) * (x.shape[0] / x.shape[1])
        x = x / x.sum(1, keepdims=True)
    return x


def sinkhorn_attention_oracle(q, k, v, scale=None, rounds=20):
    (B, T, N, H), S = q.shape, k.shape[1]
    scale = H**-0.5 if scale is None else scale
    w = np.zeros((B, N, T, S))
    for b, n in np.ndindex(B, N):
        w[b, n] = plan(scale * q[b, :, n] @ k[b, :, kv(q, k, n)].T, rounds)
    return blend(w, v)


def multi_prompt_sinkhorn_attention_oracle(q, k, v, eps=0.05, rounds=100):
    return sinkhorn_attention_oracle(unit(q), unit(k), v, 1 / eps, rounds) / q.shape[1]


def test_marginals_gauge_and_roles():
    with jax.enable_x64():
        q, k, _ = qkv(B, T, N, H, S=S)
        weights = jax.jit(lambda q, k: _weights(q, k, rounds=60))
        w = weights(q, k)
        near(w.sum(-1), np.ones((B, N, T)), 1e-12)
        near(w.sum(-2), np.full((B, N, S), T / S), 1e-8)
        near(weights(k, q), np.swapaxes(w, -1, -2) * S / T, 1e-8)
        # numbers of the query alone, and of the key alone, cannot be seen
        one = jnp.ones((B, T, N, 1)), jnp.ones((B, S, N, 1))
        rows, columns = draw(B, T, N, 1, seed=5), draw(B, S, N, 1, seed=6)
        scale = ((H + 2) / H) ** 0.5
        asked = scale * jnp.concatenate([q, rows, one[0]], -1)
        near(weights(asked, jnp.concatenate([k, one[1], columns], -1)), w, 1e-8)


def _weights(q, k, **options):
    v = jnp.broadcast_to(jnp.eye(k.shape[1])[None, :, None], (*k.shape[:3], k.shape[1]))
    return sinkhorn_attention(q, k, v, **options).transpose(0, 2, 1, 3)


def test_the_score_map_weighs_cosines_by_the_plan():
    q, k, _ = qkv(B, T, N, H, S=S)
    got = multi_prompt_score_map(q, k, eps=0.2, rounds=9)
    q, k = unit(exact(q)), unit(exact(k))
    for b, n in np.ndindex(B, N):
        cosines = q[b, :, n] @ k[b, :, n].T
        near(got[b, :, n], S * (plan(cosines / 0.2, 9) * cosines).sum(0), 1e-4)


def test_one_prompt_reads_all_pixels_alike():
    q, k, v = qkv(B, 1, N, H, S=S)
    near(multi_prompt_sinkhorn_attention(q, k, v, rounds=2), v.mean(1, keepdims=True))
    with pytest.raises(ValueError, match="rounds is 0"):
        sinkhorn_attention(q, k, v, rounds=0)
