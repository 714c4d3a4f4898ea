"""Routing attention: its oracle, cluster membership, how centroids move, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import masks
from attnjax.core import features
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import routing_attention, routing_causal, update_centroids
from tests.helpers import draw, exact, near, qkv, run, weights_of
from tests.ops.plain import blend, both, standard, weights

B, T, N, K, H = 2, 12, 4, 2, 8


def routing_attention_oracle(q, k, v, centroids, window, allowed=None):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    q, k = standard(q), standard(k)
    dot = lambda b, n, i, j: q[b, i, n] @ k[b, j, n * K // N]
    results = {}
    for b, n, c in np.ndindex(B, *centroids.shape[:2]):
        mu = centroids[n, c]
        rows = sorted(range(T), key=lambda t: q[b, t, n] @ mu)[-window:]
        columns = sorted(range(S), key=lambda s: k[b, s, n * K // N] @ mu)[-window:]
        inside = np.zeros((B, N, T, S), bool)
        inside[b, n][np.ix_(rows, columns)] = True
        out = blend(weights(q, k, both(allowed, inside), logit=dot), v)
        for t in rows:
            results.setdefault((b, t, n), []).append(out[b, t, n])
    total = np.zeros((B, T, N, v.shape[-1]))
    for (b, t, n), outs in results.items():
        total[b, t, n] = np.mean(outs, axis=0)
    return total


@pytest.mark.parametrize(
    ("op", "want"),
    [
        (routing_attention, [[0.9820, 0.0180], [0.0180, 0.9820]]),
        (routing_causal, [[1, 0], [0.0180, 0.9820]]),
    ],
)
def test_two_tokens_by_hand(op, want):
    """Logits are products of (1,-1) and (-1,1), 2 and -2, not over sqrt(2)."""
    x = jnp.eye(2)[None, :, None]
    near(op(x, x, x, jnp.asarray([[[1.0, 1.0]]]), window=2)[0, :, 0], want, 5e-5)
    near(op(3 * x, x, x, jnp.asarray([[[1.0, 1.0]]]), window=2)[0, :, 0], want, 5e-5)


def test_a_token_may_lie_in_several_clusters_or_in_none():
    """In such samples the laws compare with the formula."""
    q, _, _ = qkv(B, T, N, H)
    mu = draw(N, 3, H, seed=3)
    total = run(weights_of_self, q, mu).sum(-1)
    assert np.all(np.isclose(total, 1, atol=1e-5) | (total == 0)) and (total == 0).any()
    scores = np.einsum("btnh,nch->bnct", features.standardize(q), mu)
    clusters = (np.argsort(np.argsort(-scores, -1), -1) < 4).sum(2)
    assert (clusters > 1).any() and np.array_equal(clusters == 0, total == 0)


def weights_of_self(q, mu):
    """What queries that are keys, too, give the keys of their clusters of four."""
    eye = jnp.broadcast_to(jnp.eye(T)[None, :, None], (B, T, N, T))
    return jnp.swapaxes(routing_attention(q, q, eye, mu, window=4), 1, 2)


def test_separate_clusters_are_attention_under_the_same_cluster_mask():
    """Tokens lie near one of three centroids in turn, four near each; all queries are keys."""
    mu, member, x, v = separate_clusters()
    together = masks.array(member[:, None] == member[None])
    z, longer = features.standardize(x), H**0.5 * features.standardize(x)
    got = run(lambda x, v: routing_attention(x, x, v, mu, window=4), x, v)
    near(got, multi_head_attention(longer, z, v, mask=together))
    assert not np.allclose(got, multi_head_attention(longer, z, v), atol=0.1)


def separate_clusters():
    """Centroids, which of three each of twelve tokens is near, the tokens, and values."""
    mu = features.cosine(features.standardize(draw(N, 3, H, seed=3)))
    member = np.array([0, 1, 2, 2, 1, 0, 1, 0, 2, 2, 0, 1])
    x = jnp.swapaxes(mu, 0, 1)[member][None] + 0.05 * draw(B, T, N, H)
    return mu, member, x, draw(B, T, N, H, seed=2)


def test_centroids_follow_their_tokens_on_the_sphere():
    q, k, _ = qkv(B, T, N, H, K=K)
    mu = features.cosine(draw(N, 3, H, seed=3))
    got = update_centroids(mu, q, k, decay=0.9)
    near(jnp.linalg.norm(got, axis=-1), np.ones((N, 3)))
    for n in range(N):
        total = 0.9 * exact(mu[n])
        for x in exact((q[:, :, n], k[:, :, n * K // N])):
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


@pytest.mark.parametrize("op", [routing_attention, routing_causal])
def test_routing_trains_queries_keys_and_values_but_not_centroids(op):
    loss = lambda *x: jnp.sum(jnp.sin(op(*x, window=4)))
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    *of_tokens, of_centroids = slopes(*qkv(B, T, N, H, K=K), draw(N, 3, H))
    assert all(np.abs(s).max() > 1e-3 for s in of_tokens) and not np.any(of_centroids)


def test_masks_of_both_directions_forbid_more():
    q, k, v = qkv(B, T, N, H, K=K)
    mu = draw(N, 3, H, seed=3)
    op = functools.partial(routing_attention, centroids=mu, window=4)
    for mask in (masks.lengths(k=[T, 7]), masks.document(np.arange(T) // 5)):
        w = weights_of(op, q, k, mask=mask)
        ok = np.broadcast_to(mask.dense(T, T), w.shape)
        assert not w[~ok].any() and w[ok].any()


@pytest.mark.parametrize(
    ("op", "given", "message"),
    [
        (routing_attention, {"window": 13}, "window: 13; expected an integer from 1 to T = 12"),
        (routing_attention, {"window": 0}, "window: 0; expected an integer from 1"),
        (routing_causal, {"window": 0}, "window: 0; expected at least 1"),
        (routing_causal, {"centroids": draw(2, 3, H)}, r"centroids: shape \(2, 3, 8\)"),
        (routing_attention, {"centroids": draw(N, H)}, r"expected \(N,c,H\) with .* \(4, 8\)"),
        (routing_attention, {"mask": masks.causal}, "mask: causal hides .* or routing_causal"),
        (routing_attention, {"mask": masks.window(3)}, "mask: window.*or routing_causal"),
    ],
)
def test_what_routing_refuses(op, given, message):
    with pytest.raises(ValueError, match=message):
        op(*qkv(B, T, N, H, K=K), **({"centroids": draw(N, 3, H), "window": 4} | given))
