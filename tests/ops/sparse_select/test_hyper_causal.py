"""Causal HyperAttention: its oracle, and halves of halves of a length that is no power of two."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import attend, masks
from attnjax.ops.sparse_select import hyper_attention_causal
from tests.helpers import draw, exact, near, qkv, weights_of
from tests.ops.plain import attended, bucket, drawn_keys

B, T, N, K, H = 2, 13, 4, 2, 8


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


def test_halves_of_halves_equal_the_formula_and_look_back_alone():
    q, k, v = qkv(B, T, N, H, K=K)
    planes, draws = draw(H, 3, seed=3), jnp.array([0.05, 0.4, 0.77])
    run = jax.jit(functools.partial(hyper_attention_causal, block_size=2, threshold=4))
    got = run(q, k, v, planes, draws)
    near(got, hyper_attention_causal_oracle(*exact((q, k, v, planes, draws)), 2, 4))
    assert not np.allclose(got, attend(q, k, v, mask=masks.causal), atol=1e-2)
    w = weights_of(run, q, k, planes, draws)
    assert (w[..., ~np.tri(T, dtype=bool)] == 0).all()
    near(w.sum(-1), np.ones((B, N, T)))
    for now in (5, 10):  # in the second half of a segment of each length
        others = qkv(B, T, N, H, K=K, seed=7)
        changed = [
            jnp.concatenate([x[:, :now], y[:, now:]], axis=1)
            for x, y in zip((q, k, v), others, strict=True)
        ]
        near(run(*changed, planes, draws)[:, :now], got[:, :now], 1e-6)
