"""The oracle of `hyper_causal` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import attended, bucket, drawn_keys


def hyper_attention_causal(q, k, v, planes, draws, block_size, threshold, allowed=None):
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
