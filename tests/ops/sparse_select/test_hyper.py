"""HyperAttention: its oracle, what densities do, an unbiased normalizer, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, masks
from attnjax.ops.sparse_select import hyper_attention, hyper_attention_causal
from tests.helpers import draw, exact, near, qkv
from tests.ops.plain import attended, bucket, drawn_keys

B, T, N, K, H = 2, 12, 4, 2, 8


def hyper_attention_oracle(q, k, v, planes, draws, block_size, density=None, allowed=None):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    blocks = -(-S // block_size)
    seen = {}
    for b, n in np.ndindex(B, N):
        g = n * K // N
        rows = sorted(range(T), key=lambda t: bucket(q[b, t, n], planes))
        columns = sorted(range(S), key=lambda s: bucket(k[b, s, g], planes))
        samples = drawn_keys(draws, np.ones(S) if density is None else density[b, :, g])
        for place, t in enumerate(rows):
            u = place // -(-T // blocks)
            own = columns[u * block_size : (u + 1) * block_size]
            far = [(j, w) for j, w in samples if j not in own]
            seen[b, t, n] = [(j, 1.0) for j in own] + far
    return attended(q, k, v, seen, allowed)


@pytest.fixture(scope="module")
def hyper():
    """(q, k, v, planes) and hyper_attention of draws, by norm of values if `density`."""
    args = *qkv(B, T, N, H, K=K), draw(H, 3, seed=3)
    return args, jax.jit(functools.partial(hyper_attention, block_size=3))


def test_a_density_is_followed(hyper):
    args, run = hyper
    draws, density = jnp.array([0.1, 0.35, 0.6, 0.97, 0.98]), jnp.sum(args[2] ** 2, -1)
    got = run(*args, draws, density=density)
    near(got, hyper_attention_oracle(*exact(args), exact(draws), 3, density=exact(density)))
    assert not np.allclose(got, run(*args, draws), atol=1e-2)
    assert not np.allclose(got, attend(*args[:3]), atol=1e-2)


@pytest.mark.parametrize("by_norm", [False, True])
def test_the_normalizer_is_unbiased(hyper, by_norm):
    """Values tell the own block's share p of a row; the normalizer is then (its sum) / p."""
    (q, k, _, planes), run = hyper
    density = jnp.sum(k**2, -1) if by_norm else None
    eye = jnp.broadcast_to(jnp.eye(T)[None, :, None], (B, T, K, T))
    alone = lambda u: np.asarray(run(q, k, eye, planes, jnp.array([u]), density=density))
    own = np.all([alone(u) > 0 for u in (0.01, 0.3, 0.6, 0.99)], axis=0)  # whatever is drawn
    assert (own.sum(-1) == 3).all()
    draws = 400 if by_norm else T  # evenly: the mean over them is that over all draws
    inverse = [1 / np.where(own, alone((i + 0.5) / draws), 0).sum(-1) for i in range(draws)]
    exactly = 1 / np.where(own, np.asarray(attend(q, k, eye)), 0).sum(-1)
    near(np.mean(inverse, 0), exactly, 2e-2 if by_norm else 1e-4)
    assert np.std(inverse, 0).min() > 0.1


def test_hyper_attention_trains_queries_keys_and_values():
    draws = jnp.array([0.1, 0.6])
    loss = lambda *x: jnp.sum(jnp.sin(hyper_attention(*x, draw(H, 3), draws, block_size=3)))
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*qkv(B, T, N, H, K=K))
    assert all(np.abs(s).max() > 1e-3 for s in slopes)


@pytest.mark.parametrize(
    ("op", "given", "message"),
    [
        (hyper_attention, {"block_size": 0}, "block_size: 0; expected at least 1"),
        (hyper_attention_causal, {"threshold": 5}, "threshold: 5; .* multiple of block_size = 2"),
        (hyper_attention, {"planes": draw(3, H)}, r"planes: shape \(3, 8\); .* H = 8"),
        (hyper_attention, {"planes": draw(H, 17)}, "R <= 16"),
        (hyper_attention, {"mask": masks.causal}, "mask: causal hides .*hyper_attention_causal"),
    ],
)
def test_what_hyper_attention_refuses(op, given, message):
    usual = {"planes": draw(H, 3), "draws": jnp.array([0.5]), "block_size": 2}
    with pytest.raises(ValueError, match=message):
        op(*qkv(B, T, N, H, K=K), **(usual | given))
