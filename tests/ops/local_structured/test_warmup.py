"""Streams of frames: the oracle with a cache, what a frame sees, a stream that runs on."""

import numpy as np
import pytest

from attnjax.ops.local_structured import warmup_attention
from attnjax.ops.local_structured.warmup import OPS
from tests.helpers import near, weights_of
from tests.ops.plain import heads, softmax


def warmup_attention_oracle(q, k, v, codes, warmup=8):
    """A cache of the warm-up frames, then of the latest ones; codes by place in the cache."""
    (B, T, N, H), M = q.shape, len(codes.q)
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    k, v = heads(k, N), heads(v, N)
    repeat = lambda x: np.repeat(x, N // x.shape[1], axis=1)
    a, b, c = codes.q, repeat(codes.k), repeat(codes.v)
    cache = list(range(min(warmup, T)))
    for t in range(T):
        if t >= warmup:
            cache.append(t)
            if len(cache) > M:
                del cache[warmup]
        own = cache.index(t)
        for n in np.ndindex(B, N):
            at = lambda x, j, n=n: x[n[0], j, n[1]]
            query = at(q, t) + a[own, n[1]]
            scores = [query @ (at(k, j) + b[s, n[1]]) / np.sqrt(H) for s, j in enumerate(cache)]
            w = softmax(np.array(scores))
            places = zip(w, enumerate(cache), strict=True)
            out[n[0], t, n[1]] = sum(x * (at(v, j) + c[s, n[1]]) for x, (s, j) in places)
    return out


def test_what_a_frame_sees():
    given = OPS[0].sample(T=12)
    codes = given["codes"]._replace(v=0 * given["codes"].v)
    op = lambda q, k, v: warmup_attention(q, k, v, codes._replace(v=np.zeros((8, 2, 12))), warmup=5)
    seen = weights_of(op, given["q"], given["k"])[0, 0] > 0
    for t in range(12):
        want = set(range(5)) | {j for j in range(5, t + 1) if t - j < 3}
        assert set(np.flatnonzero(seen[t])) == want


def test_a_stream_looks_the_same_later():
    """Two frames less between the warm-up and the latest ones change nothing."""
    given = OPS[0].sample(T=14)
    out = warmup_attention(**given | {"warmup": 5})
    kept = np.array([0, 1, 2, 3, 4, *range(7, 14)])
    shorter = {name: given[name][:, kept] for name in "qkv"}
    near(warmup_attention(**given | shorter | {"warmup": 5})[:, 10:], out[:, 12:])


def test_a_warm_up_beyond_the_slots_is_refused():
    with pytest.raises(ValueError, match="warmup: 9; expected from 0 to M = 8 slots"):
        warmup_attention(**OPS[0].sample(draw={"warmup": 9}))
