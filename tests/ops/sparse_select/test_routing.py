"""The oracle of `routing` in float64 loops, and its own tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import masks
from attnjax.core import features
from attnjax.core.blocks import select
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import (
    routing_attention,
    routing_causal,
    update_centroids,
    vmoba,
    vmoba_block,
)
from attnjax.probes import attention_map
from tests.helpers import draw, near
from tests.ops.plain import blend, both, standard, weights


def routing_attention_oracle(q, k, v, centroids, window, allowed=None):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    q, k = standard(q), standard(k)
    found = {}
    for b, n, c in np.ndindex(B, *centroids.shape[:2]):
        mu = centroids[n, c]
        rows = sorted(range(T), key=lambda t: q[b, t, n] @ mu)[-window:]
        columns = sorted(range(S), key=lambda s: k[b, s, n * K // N] @ mu)[-window:]
        inside = np.zeros((B, N, T, S), bool)
        inside[b, n][np.ix_(rows, columns)] = True
        out = blend(weights(q, k, both(allowed, inside)), v)
        for t in rows:
            found.setdefault((b, t, n), []).append(out[b, t, n])
    total = np.zeros((B, T, N, v.shape[-1]))
    for (b, t, n), outs in found.items():
        total[b, t, n] = np.mean(outs, axis=0)
    return total


def small_qkv(T=12, N=4, K=2, H=8, seed=0):
    return draw(2, T, N, H, seed=seed), draw(2, T, K, H, seed=seed + 1), draw(2, T, K, H, seed=9)


def run(fn, *args, **static):
    """fn of arrays, jitted; some programs hold integers and selectors of blocks as well."""
    return jax.jit(functools.partial(fn, **static))(*args)


def test_vmoba_by_query_over_slabs_is_moba_without_order():
    q, k, v = small_qkv()
    shape = (6, 1, 2)
    block = vmoba_block(0, shape, (2, 1, 1))
    choose = functools.partial(select.top_k, k=2)
    got = run(vmoba, q, k, v, shape=shape, block=block, choose=choose)
    seen = np.zeros((2, 4, 12, 12), bool)
    for b, n, i in np.ndindex(2, 4, 12):
        likes = [q[b, i, n] @ k[b, 4 * c : 4 * c + 4, n // 2].mean(0) for c in range(3)]
        for c in np.argsort(likes)[1:]:
            seen[b, n, i, 4 * c : 4 * c + 4] = True
    near(got, blend(weights(*map(np.float64, (q, k)), seen), np.float64(v)))
    assert not np.allclose(got, run(multi_head_attention, q, k, v), atol=0.01)


B, T, N, K, H = 2, 12, 4, 2, 8


def qkv(T=T):
    return draw(B, T, N, H), draw(B, T, K, H, seed=1), draw(B, T, K, H, seed=2)


def test_a_token_may_lie_in_several_clusters_or_in_none():
    """In such samples the laws compare with the formula; weights of causal tokens look back."""
    q, _, _ = qkv()
    mu = draw(N, 3, H, seed=3)
    op = lambda q, k, v: routing_attention(q, k, v, mu, window=4, mask=masks.causal)
    w = np.asarray(attention_map(op, q, q))
    assert (w[..., ~np.tri(T, dtype=bool)] == 0).all()
    total = w.sum(-1)
    assert np.all(np.isclose(total, 1, atol=1e-5) | (total == 0)) and (total == 0).any()
    scores = np.einsum("btnh,nch->bnct", features.standardize(q), mu)
    inside = (np.argsort(np.argsort(-scores, -1), -1) < 4).sum(2)
    assert (inside > 1).any() and np.array_equal(inside == 0, total == 0)


def test_centroids_follow_their_tokens_on_the_sphere():
    q, k, _ = qkv()
    mu = features.cosine(draw(N, 3, H, seed=3))
    got = update_centroids(mu, q, k, decay=0.9)
    near(jnp.linalg.norm(got, axis=-1), np.ones((N, 3)))
    for n in range(N):
        total = 0.9 * np.asarray(mu[n], np.float64)
        for x in (q[:, :, n], k[:, :, n * K // N]):
            x = np.asarray(x, np.float64)
            x = x - x.mean(-1, keepdims=True)
            x /= np.linalg.norm(x, axis=-1, keepdims=True)
            for token in x.reshape(-1, H):
                total[np.argmax(np.asarray(mu[n]) @ token)] += 0.05 * token
        near(got[n], total / np.linalg.norm(total, axis=-1, keepdims=True))
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
        *slopes, of_centroids = slopes_of(q, k, v, draw(N, 3, H))
        assert all(np.abs(s).max() > 1e-3 for s in slopes) and not np.any(of_centroids)


@pytest.mark.parametrize(
    ("op", "given", "message"),
    [
        (routing_attention, {"window": 13}, "window: 13; expected an integer from 1 to T = 12"),
        (routing_attention, {"window": 0}, "window: 0; expected an integer from 1"),
        (routing_causal, {"window": 0}, "window: 0; expected at least 1"),
        (routing_causal, {"centroids": draw(2, 3, H)}, r"centroids: shape \(2, 3, 8\)"),
        (routing_attention, {"centroids": draw(N, H)}, r"expected \(N,c,H\) with .* \(4, 8\)"),
    ],
)
def test_what_routing_refuses(op, given, message):
    with pytest.raises(ValueError, match=message):
        op(*qkv(), **({"centroids": draw(N, 3, H), "window": 4} | given))
