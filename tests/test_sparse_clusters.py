"""Clusters and buckets: what the papers say of them beyond the formulas, which the laws cover."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, masks
from attnjax.core import features
from attnjax.core.blocks.order import gray_codes, sample_keys
from attnjax.ops.sparse_select import (
    hyper_attention,
    hyper_attention_causal,
    routing_attention,
    routing_causal,
    update_centroids,
)
from attnjax.probes import attention_map
from tests.oracles import ORACLES

B, T, N, K, H = 2, 12, 4, 2, 8


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


def qkv(T=T):
    return normal(B, T, N, H), normal(B, T, K, H, seed=1), normal(B, T, K, H, seed=2)


def close(got, want, tolerance=2e-5):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def exact(args):
    return [np.asarray(x, np.float64) for x in args]


# ------------------------------------------------------------------------------------- routing


def test_separate_clusters_are_attention_under_the_same_cluster_mask():
    """Tokens lie near one of three centroids in turn, four near each; all queries are keys."""
    mu = features.cosine(features.standardize(normal(N, 3, H, seed=3)))
    member = np.array([0, 1, 2, 2, 1, 0, 1, 0, 2, 2, 0, 1])
    x = jnp.swapaxes(mu, 0, 1)[member][None] + 0.05 * normal(B, T, N, H)
    v = normal(B, T, N, H, seed=2)
    together = masks.array(member[:, None] == member[None])
    z = features.standardize(x)
    for mask in (masks.causal, None):
        got = jax.jit(lambda x, v, mask=mask: routing_attention(x, x, v, mu, window=4, mask=mask))(
            x, v
        )
        close(got, attend(z, z, v, mask=mask & together))
        assert not np.allclose(got, attend(z, z, v, mask=mask), atol=0.1)
    causal = jax.jit(lambda x, v: routing_causal(x, x, v, mu, window=4))(x, v)
    close(causal, attend(z, z, v, mask=masks.causal & together))


def test_a_token_may_lie_in_several_clusters_or_in_none():
    """In such samples the laws compare with the formula; weights of causal tokens look back."""
    q, _, _ = qkv()
    mu = normal(N, 3, H, seed=3)
    op = lambda q, k, v: routing_attention(q, k, v, mu, window=4, mask=masks.causal)
    w = np.asarray(attention_map(op, q, q))
    assert (w[..., ~np.tri(T, dtype=bool)] == 0).all()
    total = w.sum(-1)
    assert np.all(np.isclose(total, 1, atol=1e-5) | (total == 0)) and (total == 0).any()
    scores = np.einsum("btnh,nch->bnct", features.standardize(q), mu)
    inside = (np.argsort(np.argsort(-scores, -1), -1) < 4).sum(2)
    assert (inside > 1).any() and np.array_equal(inside == 0, total == 0)


def test_causal_clusters_show_at_most_two_chunks():
    q, k, _ = qkv()
    mu = normal(N, 2, H, seed=3)
    op = jax.jit(functools.partial(routing_causal, centroids=mu, window=2))
    w = np.asarray(attention_map(op, q, k))
    nearest = lambda x: np.asarray(
        jnp.einsum("btnh,nch->btnc", features.standardize(x), mu)
    ).argmax(-1)
    mine, theirs = nearest(q), nearest(jnp.repeat(k, N // K, 2))
    most = 0
    for b, n, t in np.ndindex(B, N, T):
        seen, had = (
            np.flatnonzero(w[b, n, t]),
            np.flatnonzero(theirs[b, : t + 1, n] == mine[b, t, n]),
        )
        assert np.array_equal(seen, had[len(had) - len(seen) :])  # the latest of its cluster
        assert min(len(had), 3) <= len(seen) <= 4 or len(had) == len(seen)
        most = max(most, len(had))
    assert most > 4


def test_centroids_follow_their_tokens_on_the_sphere():
    q, k, _ = qkv()
    mu = features.cosine(normal(N, 3, H, seed=3))
    got = update_centroids(mu, q, k, decay=0.9)
    close(jnp.linalg.norm(got, axis=-1), np.ones((N, 3)))
    for n in range(N):
        total = 0.9 * np.asarray(mu[n], np.float64)
        for x in (q[:, :, n], k[:, :, n * K // N]):
            x = np.asarray(x, np.float64)
            x = x - x.mean(-1, keepdims=True)
            x /= np.linalg.norm(x, axis=-1, keepdims=True)
            for token in x.reshape(-1, H):
                total[np.argmax(np.asarray(mu[n]) @ token)] += 0.05 * token
        close(got[n], total / np.linalg.norm(total, axis=-1, keepdims=True))
    assert not np.any(jax.grad(lambda q: jnp.sum(update_centroids(mu, q, k)))(q))
    poisoned = update_centroids(mu, q.at[0, 0].set(jnp.nan), k)
    assert np.isfinite(poisoned).all()

    nearness = lambda mu: jnp.einsum("btnh,nch->btnc", features.standardize(q), mu).max(-1).mean()
    later = jax.lax.fori_loop(0, 30, lambda _, mu: update_centroids(mu, q, q, decay=0.9), mu)
    assert nearness(later) > nearness(mu) + 0.1


def test_routing_trains_queries_keys_and_values_but_not_centroids():
    q, k, v = qkv()
    for op in (routing_attention, routing_causal):
        loss = lambda *x, op=op: jnp.sum(jnp.sin(op(*x, window=4)))
        slopes_of = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
        *slopes, of_centroids = slopes_of(q, k, v, normal(N, 3, H))
        assert all(np.abs(s).max() > 1e-3 for s in slopes) and not np.any(of_centroids)


@pytest.mark.parametrize(
    ("op", "given", "message"),
    [
        (routing_attention, {"window": 13}, "window: 13; expected an integer from 1 to T = 12"),
        (routing_attention, {"window": 0}, "window: 0; expected an integer from 1"),
        (routing_causal, {"window": 0}, "window: 0; expected at least 1"),
        (routing_causal, {"centroids": normal(2, 3, H)}, r"centroids: shape \(2, 3, 8\)"),
        (routing_attention, {"centroids": normal(N, H)}, r"expected \(N,c,H\) with .* \(4, 8\)"),
    ],
)
def test_what_routing_refuses(op, given, message):
    with pytest.raises(ValueError, match=message):
        op(*qkv(), **({"centroids": normal(N, 3, H), "window": 4} | given))


# --------------------------------------------------------------------------------------- hyper


def test_neighboring_buckets_differ_in_one_side():
    x, planes = normal(1, 4000, 1, 3), normal(3, 3, seed=1)
    codes = np.asarray(gray_codes(x, planes))[0, :, 0]
    sides = np.asarray(x[0, :, 0] @ planes > 0)
    of_code = {c: {tuple(s) for s in sides[codes == c]} for c in np.unique(codes)}
    assert sorted(of_code) == list(range(8))
    patterns = [np.array(of_code[c].pop()) for c in range(8)]
    assert not any(of_code.values())  # one pattern each
    assert all((a != b).sum() == 1 for a, b in zip(patterns, patterns[1:], strict=False))


def test_keys_are_drawn_in_proportion_to_their_density_in_each_segment():
    density = jnp.asarray([1.0, 0.0, 3.0, 4.0, 2.0, 6.0, 5.0])[None, :, None]
    draws = (jnp.arange(16) + 0.5) / 16
    at, log_weight = sample_keys(draws, density, 4)
    counts = np.bincount(np.asarray(at[0, :16, 0]), minlength=7)
    close(counts, [2, 0, 6, 8, 0, 0, 0])
    assert np.asarray(at[0, 16:, 0]).min() >= 4 and np.bincount(at[0, 16:, 0])[4:].sum() == 16
    weights = np.bincount(np.asarray(at[0, :, 0]), np.exp(log_weight[0, :, 0]), minlength=7)
    close(weights[:4], [1, 0, 1, 1])  # each key stands for itself, on average
    close(weights[4:], [1, 1, 1], 0.3)
    none = sample_keys(draws, 0 * density, 4)[1]
    close(none, np.log([4 / 16] * 16 + [3 / 16] * 16)[None, :, None])


@pytest.fixture(scope="module")
def hyper():
    """(q, k, v, planes) and hyper_attention of draws, by norm of values if `density`."""
    q, k, v = qkv()
    planes = normal(H, 3, seed=3)
    return (q, k, v, planes), jax.jit(functools.partial(hyper_attention, block_size=3))


def test_a_density_is_followed(hyper):
    args, run = hyper
    draws, density = jnp.array([0.1, 0.35, 0.6, 0.97, 0.98]), jnp.sum(args[2] ** 2, -1)
    got = run(*args, draws, density=density)
    want = ORACLES["hyper_attention"](
        *exact(args), draws, 3, density=np.asarray(density, np.float64)
    )
    close(got, want)
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
    close(np.mean(inverse, 0), exactly, 2e-2 if by_norm else 1e-4)
    assert np.std(inverse, 0).min() > 0.1


def test_halves_of_halves_equal_the_formula_and_look_back_alone():
    T = 13
    q, k, v = qkv(T)
    planes, draws = normal(H, 3, seed=3), jnp.array([0.05, 0.4, 0.77])
    run = jax.jit(functools.partial(hyper_attention_causal, block_size=2, threshold=4))
    got = run(q, k, v, planes, draws)
    close(got, ORACLES["hyper_attention_causal"](*exact((q, k, v, planes, draws)), 2, 4))
    assert not np.allclose(got, attend(q, k, v, mask=masks.causal), atol=1e-2)
    w = np.asarray(attention_map(lambda *x: run(*x, planes, draws), q, k))
    assert (w[..., ~np.tri(T, dtype=bool)] == 0).all()
    close(w.sum(-1), np.ones((B, N, T)))
    for now in (5, 10):  # in the second half of a segment of each length
        later = lambda x, seed, now=now: jnp.concatenate(
            [x[:, :now], normal(*x[:, now:].shape, seed=seed)], axis=1
        )
        changed = run(later(q, 7), later(k, 8), later(v, 9), planes, draws)
        close(changed[:, :now], got[:, :now], 1e-6)


def test_hyper_attention_trains_queries_keys_and_values():
    q, k, v = qkv()
    draws = jnp.array([0.1, 0.6])
    loss = lambda *x: jnp.sum(jnp.sin(hyper_attention(*x, normal(H, 3), draws, block_size=3)))
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)
    assert all(np.abs(s).max() > 1e-3 for s in slopes)


@pytest.mark.parametrize(
    ("op", "given", "message"),
    [
        (hyper_attention, {"block_size": 0}, "block_size: 0; expected at least 1"),
        (hyper_attention_causal, {"threshold": 5}, "threshold: 5; .* multiple of block_size = 2"),
        (hyper_attention, {"planes": normal(3, H)}, r"planes: shape \(3, 8\); .* H = 8"),
        (hyper_attention, {"planes": normal(H, 17)}, "R <= 16"),
    ],
)
def test_what_hyper_attention_refuses(op, given, message):
    with pytest.raises(ValueError, match=message):
        usual = {"planes": normal(H, 3), "draws": jnp.array([0.5]), "block_size": 2}
        op(*qkv(), **(usual | given))
