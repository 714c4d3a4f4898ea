"""Heads that look far where it pays: the oracle; keys that are normal, and moments of a text."""

import numpy as np

from attnjax.ops.kv_decode import KeyMoments, adaptive_head_attention, key_moments, near_share
from tests.helpers import draw, near, qkv
from tests.ops.plain import blend, softmax


def _near(i, sinks, window):
    return [j for j in range(i + 1) if j < sinks or j > i - window]


def adaptive_head_attention_oracle(q, k, v, moments, sinks, window, tau):
    (B, T, N, H), K = q.shape, k.shape[2]
    w = np.zeros((B, N, T, T))
    for b, n, i in np.ndindex(B, N, T):
        x, m = q[b, i, n], n * K // N
        s = np.array([x @ k[b, j, m] / np.sqrt(H) for j in range(i + 1)])
        own, far = _near(i, sinks, window), 0.0
        if len(own) <= i:
            spread = x @ moments.covariance[m] @ x / (2 * H)
            far = (i + 1 - len(own)) * np.exp(x @ moments.mean[m] / np.sqrt(H) + spread)
        mass = np.exp(s[own]).sum()
        seen = own if mass / (mass + far) >= tau else list(range(i + 1))
        w[b, n, i, seen] = softmax(s[seen])
    return blend(w, v)


def test_the_share_of_normal_keys_is_what_it_is_for_many_of_them():
    q, k = draw(1, 3000, 2, 8, scale=0.7), draw(1, 3000, 1, 8, seed=1) + 0.3
    got = np.asarray(near_share(q, k, key_moments(k), sinks=4, window=500))[0, -1]
    for n in range(2):
        e = np.exp(np.asarray(k[0, :, 0] @ q[0, -1, n]) / np.sqrt(8))
        own = _near(2999, 4, 500)
        near(got[n], e[own].sum() / e.sum(), 0.03)


def test_the_first_queries_are_near_all_their_keys():
    q, k, v = qkv(2, 9, 4, 8, K=2)
    share = near_share(q, k, key_moments(k), sinks=1, window=4)
    assert (share[:, :5] == 1).all()
    assert (share[:, 5:] < 1).all()
    args = (q, k, v, key_moments(k))
    same = [adaptive_head_attention(*args, sinks=1, window=4, tau=tau) for tau in (0.0, 1.0)]
    near(same[0][:, :5], same[1][:, :5])


def test_moments():
    k = draw(2, 50, 2, 4)
    heads = np.asarray(k).transpose(2, 3, 0, 1).reshape(2, 4, 100)
    want = heads.mean(-1), np.stack([np.cov(x, bias=True) for x in heads])
    near(key_moments(k), KeyMoments(*want))
