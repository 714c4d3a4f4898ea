"""The oracle of `routing_causal` in float64 loops, and its own tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import attend, masks
from attnjax.core import features
from attnjax.ops.sparse_select import (
    routing_attention,
    routing_causal,
)
from attnjax.probes import attention_map
from tests.helpers import draw, near
from tests.ops.plain import blend, both, standard, weights


def routing_causal_oracle(q, k, v, centroids, window, allowed=None):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    q, k = standard(q), standard(k)
    seen = np.zeros((B, N, T, S), bool)
    for b, n, t in np.ndindex(B, N, T):
        nearest = lambda x, n=n: int(np.argmax([x @ mu for mu in centroids[n]]))
        mine = nearest(q[b, t, n])
        keys = [s for s in range(min(t + 1, S)) if nearest(k[b, s, n * K // N]) == mine]
        chunks = [keys[i : i + window] for i in range(0, len(keys), window)]
        for s in sum(chunks[-2:], []):
            seen[b, n, t, s] = True
    return blend(weights(q, k, both(allowed, seen)), v)


B, T, N, K, H = 2, 12, 4, 2, 8


def test_separate_clusters_are_attention_under_the_same_cluster_mask():
    """Tokens lie near one of three centroids in turn, four near each; all queries are keys."""
    mu = features.cosine(features.standardize(draw(N, 3, H, seed=3)))
    member = np.array([0, 1, 2, 2, 1, 0, 1, 0, 2, 2, 0, 1])
    x = jnp.swapaxes(mu, 0, 1)[member][None] + 0.05 * draw(B, T, N, H)
    v = draw(B, T, N, H, seed=2)
    together = masks.array(member[:, None] == member[None])
    z = features.standardize(x)
    for mask in (masks.causal, None):
        got = jax.jit(lambda x, v, mask=mask: routing_attention(x, x, v, mu, window=4, mask=mask))(
            x, v
        )
        near(got, attend(z, z, v, mask=mask & together))
        assert not np.allclose(got, attend(z, z, v, mask=mask), atol=0.1)
    causal = jax.jit(lambda x, v: routing_causal(x, x, v, mu, window=4))(x, v)
    near(causal, attend(z, z, v, mask=masks.causal & together))


def qkv(T=T):
    return draw(B, T, N, H), draw(B, T, K, H, seed=1), draw(B, T, K, H, seed=2)


def test_causal_clusters_show_at_most_two_chunks():
    q, k, _ = qkv()
    mu = draw(N, 2, H, seed=3)
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
