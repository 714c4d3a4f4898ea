"""Products of maps against loops in float64, and where causal masks lead them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attention_weights, masks
from attnjax.probes.flow import damped_early, flow, rollout, sharp_heads, spread
from tests.helpers import near


def causal(*shape, seed=0):
    raw = np.random.default_rng(seed).random((*shape, shape[-1])) + 0.01
    raw = raw * np.tril(np.ones(raw.shape[-2:]))
    return raw / raw.sum(-1, keepdims=True)


def products_oracle(maps, residual):
    """Both products, token by token."""
    L, T, _ = maps.shape
    roll, both = np.eye(T), np.zeros((T, T))
    for layer in range(L):
        next_roll, next_both = np.zeros((T, T)), np.zeros((T, T))
        for i, j in np.ndindex(T, T):
            for m in range(T):
                a = maps[layer, i, m]
                same = float(i == m)
                next_roll[i, j] += ((1 - residual) * a + residual * same) * roll[m, j]
                next_both[i, j] += (same + a) * (float(m == j) + both[m, j])
        roll, both = next_roll, next_both
    return roll, both


def test_products_are_those_of_loops():
    with jax.enable_x64(True):
        maps = causal(3, 6)
        for residual in (0.0, 0.5):
            roll, both = products_oracle(maps, residual)
            near(rollout(jnp.asarray(maps), residual), roll, 1e-12)
            near(flow(jnp.asarray(maps)), both, 1e-12)
        some = jnp.asarray(causal(3, 2, 4, 6))
        near(rollout(some)[1, 2], rollout(some[:, 1, 2]), 1e-12)
        near(rollout(some).sum(-1), np.ones((2, 4, 6)), 1e-12)
        assert (jnp.triu(flow(some), 1) == 0).all()


def test_sharp_heads_count_more_and_early_tokens_less():
    maps = causal(2, 4, 6)
    want = np.zeros((2, 6, 6))
    for layer in range(2):
        for n in range(4):
            weight = np.mean([maps[layer, n, i].max() for i in range(6)])
            want[layer] += weight * maps[layer, n] / 4
    near(sharp_heads(jnp.asarray(maps, jnp.float32)), want)
    damped = np.asarray(damped_early(jnp.asarray(want, jnp.float32)))
    for j in range(6):
        seen = 6 - j  # rows that see column j
        near(damped[..., j], want[..., j] * (1 - (seen - 1) / 6))
    near(damped_early(jnp.ones((6, 6)), jnp.ones((6, 6), bool)), np.full((6, 6), 1 / 6))
    near(spread(jnp.asarray([[3.0, 1.0, 2.0], [5.0, 5.0, 5.0]])), [[1.0, 0.0, 0.5], [0.0] * 3])


def first_mass(mask, depth, T=24):
    q = jnp.zeros((1, T, 1, 4))
    maps = jnp.stack([attention_weights(q, q, mask=mask)[0, 0]] * depth)
    return np.asarray(rollout(maps, 0.0))


@pytest.mark.parametrize("mask", [masks.causal, masks.window(6), masks.window(3)])
def test_causal_layers_lead_to_the_first_token(mask):
    by_depth = [first_mass(mask, depth)[:, 0] for depth in (1, 2, 4, 8, 16, 64)]
    assert (np.diff(by_depth, axis=0) >= -1e-6).all()
    assert by_depth[-1][-1] > 0.9 * by_depth[-1][0]


def test_a_narrow_window_is_slower_a_prefix_keeps_it_and_no_mask_spreads_it():
    last = lambda mask, depth: first_mass(mask, depth)[-1]
    assert last(masks.causal, 8)[0] > last(masks.window(6), 8)[0] > last(masks.window(3), 8)[0]
    kept = last(masks.causal | masks.prefix(4), 64)
    assert kept[:4].sum() > 0.99
    near(kept[:4], np.full(4, 0.25), 1e-2)
    near(last(masks.everything, 5), np.full(24, 1 / 24))


def test_gradients_pass():
    grad = jax.grad(lambda m: rollout(m)[-1, 0] + flow(m)[-1, 1])(jnp.asarray(causal(2, 5)))
    assert np.isfinite(grad).all() and (np.abs(np.asarray(grad)).sum() > 0)
