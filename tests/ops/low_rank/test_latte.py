"""Latte: its oracle, its weights, one latent, logits that overflow."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import attend, masks, mods
from attnjax.ops.linear_recurrent import efficient_attention
from attnjax.ops.low_rank import latte_attention
from tests.helpers import draw, draws, exact, near, qkv, run, weights_of
from tests.ops.plain import softmax

B, T, N, K, H = 2, 9, 4, 2, 3


def latte_attention_oracle(q, k, v):
    (B, T, N, H), (K, D) = q.shape, v.shape[2:]
    out = np.zeros((B, T, N, D))
    for b, t, n, l in np.ndindex(B, T, N, H):
        g = n * K // N
        of_latent = softmax(k[b, : t + 1, g, l])
        out[b, t, n] += softmax(q[b, t, n])[l] * (of_latent @ v[b, : t + 1, g])
    return out


def test_rows_of_the_map_sum_to_one_and_its_last_is_that_of_both_directions():
    q, k, v = qkv(B, T, N, H, K=K, D=5)
    got = weights_of(latte_attention, q, k)
    near(got.sum(-1), np.ones((B, N, T)))
    assert (np.triu(got, 1) == 0).all() and (got[..., *np.tril_indices(T)] > 0).all()
    near(latte_attention(q, k, v)[:, -1], efficient_attention(q, k, v)[:, -1])


def test_one_latent_is_a_weighted_running_mean():
    k, v = draws((B, T, 2, 1), (B, T, 2, 4))
    weighted = attend(
        jnp.zeros((B, T, 2, 1)), k, v, mods=(mods.mod(jnp.add, key=k[..., 0]),), mask=masks.causal
    )
    near(latte_attention(draw(B, T, 2, 1), k, v), weighted)


def test_logits_that_overflow_float32_do_no_harm():
    q, k, v = qkv(1, T, 2, H, scale=100.0)
    k = k.at[:, 4].add(1000.0)
    near(latte_attention(q, k, v), latte_attention_oracle(*exact((q, k, v))), 1e-3)
    slopes = run(jax.grad(lambda *x: jnp.sin(latte_attention(*x)).sum(), (0, 1, 2)), q, k, v)
    assert all(np.isfinite(x).all() for x in slopes)
