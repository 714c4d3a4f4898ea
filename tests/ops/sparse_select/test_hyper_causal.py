"""The oracle of `hyper_causal` in float64 loops, and its own tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import attend, masks
from attnjax.ops.sparse_select import (
    hyper_attention_causal,
)
from attnjax.probes import attention_map
from tests.helpers import draw, near
from tests.ops.plain import attended, bucket, drawn_keys


def hyper_attention_causal_oracle(q, k, v, planes, draws, block_size, threshold, allowed=None):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    seen = {}
    for b, t, n in np.ndindex(B, T, N):
        g, mine = n * K // N, bucket(q[b, t, n], planes)
        near = range(t // threshold * threshold, min(t + 1, S))
        pairs = [(j, 1.0) for j in near]
        length = threshold
        while length < T:
            start = (t // length - 1) * length
            keys = list(range(start, min(start + length, S))) if t // length % 2 else []
            if keys:
                columns = sorted(keys, key=lambda s: bucket(k[b, s, g], planes))
                codes = [bucket(k[b, s, g], planes) for s in columns]
                below, upto = sum(c < mine for c in codes), sum(c <= mine for c in codes)
                u = min((below + upto) // 2, len(keys) - 1) // block_size
                own = columns[u * block_size : (u + 1) * block_size]
                drawn = [(keys[j], w) for j, w in drawn_keys(draws, np.ones(len(keys)))]
                pairs += [(j, 1.0) for j in own] + [(j, w) for j, w in drawn if j not in own]
            length *= 2
        seen[b, t, n] = pairs
    return attended(q, k, v, seen, allowed)


B, T, N, K, H = 2, 12, 4, 2, 8


def qkv(T=T):
    return draw(B, T, N, H), draw(B, T, K, H, seed=1), draw(B, T, K, H, seed=2)


def exact(args):
    return [np.asarray(x, np.float64) for x in args]


def test_halves_of_halves_equal_the_formula_and_look_back_alone():
    T = 13
    q, k, v = qkv(T)
    planes, draws = draw(H, 3, seed=3), jnp.array([0.05, 0.4, 0.77])
    run = jax.jit(functools.partial(hyper_attention_causal, block_size=2, threshold=4))
    got = run(q, k, v, planes, draws)
    near(got, hyper_attention_causal_oracle(*exact((q, k, v, planes, draws)), 2, 4))
    assert not np.allclose(got, attend(q, k, v, mask=masks.causal), atol=1e-2)
    w = np.asarray(attention_map(lambda *x: run(*x, planes, draws), q, k))
    assert (w[..., ~np.tri(T, dtype=bool)] == 0).all()
    near(w.sum(-1), np.ones((B, N, T)))
    for now in (5, 10):  # in the second half of a segment of each length
        later = lambda x, seed, now=now: jnp.concatenate(
            [x[:, :now], draw(*x[:, now:].shape, seed=seed)], axis=1
        )
        changed = run(later(q, 7), later(k, 8), later(v, 9), planes, draws)
        near(changed[:, :now], got[:, :now], 1e-6)
