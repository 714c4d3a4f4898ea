"""Causal routing: its oracle, and which keys of its cluster a query sees."""

import functools

import jax.numpy as jnp
import numpy as np

from attnjax import masks
from attnjax.core import features
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import routing_causal
from tests.helpers import draw, exact, near, qkv, run, weights_of
from tests.ops.plain import blend, both, standard, weights
from tests.ops.sparse_select.test_routing import separate_clusters

B, T, N, K, H = 2, 12, 4, 2, 8


def routing_causal_oracle(q, k, v, centroids, window, allowed=None):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    q, k = standard(q), standard(k)
    dot = lambda b, n, i, j: q[b, i, n] @ k[b, j, n * K // N]
    seen = np.zeros((B, N, T, S), bool)
    for b, n, t in np.ndindex(B, N, T):
        nearest = lambda x, n=n: int(np.argmax([x @ mu for mu in centroids[n]]))
        mine = nearest(q[b, t, n])
        keys = [s for s in range(min(t + 1, S)) if nearest(k[b, s, n * K // N]) == mine]
        chunks = [keys[i : i + window] for i in range(0, len(keys), window)]
        for s in sum(chunks[-2:], []):
            seen[b, n, t, s] = True
    return blend(weights(q, k, both(allowed, seen), logit=dot), v)


def test_separate_clusters_are_causal_attention_under_the_same_cluster_mask():
    mu, member, x, v = separate_clusters()
    together = masks.array(member[:, None] == member[None])
    z, longer = features.standardize(x), H**0.5 * features.standardize(x)
    got = run(lambda x, v: routing_causal(x, x, v, mu, window=4), x, v)
    near(got, multi_head_attention(longer, z, v, mask=masks.causal & together))


def test_queries_behind_all_keys_see_each_key_once():
    """Also where the last chunk of a cluster is not full."""
    args = *qkv(B, T, N, H, K=K, S=7), draw(N, 3, H, seed=3)
    near(run(routing_causal, *args, window=4), routing_causal_oracle(*exact(args), 4))


def test_causal_clusters_show_at_most_two_chunks():
    q, k, _ = qkv(B, T, N, H, K=K)
    mu = draw(N, 2, H, seed=3)
    w = weights_of(functools.partial(routing_causal, centroids=mu, window=2), q, k)
    products = lambda x: jnp.einsum("btnh,nch->btnc", features.standardize(x), mu)
    mine = np.asarray(products(q)).argmax(-1)
    theirs = np.asarray(products(jnp.repeat(k, N // K, 2))).argmax(-1)
    most = 0
    for b, n, t in np.ndindex(B, N, T):
        seen = np.flatnonzero(w[b, n, t])
        had = np.flatnonzero(theirs[b, : t + 1, n] == mine[b, t, n])
        assert np.array_equal(seen, had[len(had) - len(seen) :])  # the latest of its cluster
        assert min(len(had), 3) <= len(seen) <= 4 or len(had) == len(seen)
        most = max(most, len(had))
    assert most > 4
