"""Oracles of attnjax.ops.sparse, tokens in clusters and buckets: float64 loops."""

import numpy as np

from tests.oracles.plain import blend, both, visible, weights


def _standard(x):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True))


def routing_attention(q, k, v, centroids, window, allowed=None):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    q, k = _standard(q), _standard(k)
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


def routing_causal(q, k, v, centroids, window, allowed=None):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    q, k = _standard(q), _standard(k)
    seen = np.zeros((B, N, T, S), bool)
    for b, n, t in np.ndindex(B, N, T):
        nearest = lambda x, n=n: int(np.argmax([x @ mu for mu in centroids[n]]))
        mine = nearest(q[b, t, n])
        keys = [s for s in range(min(t + 1, S)) if nearest(k[b, s, n * K // N]) == mine]
        chunks = [keys[i : i + window] for i in range(0, len(keys), window)]
        for s in sum(chunks[-2:], []):
            seen[b, n, t, s] = True
    return blend(weights(q, k, both(allowed, seen)), v)


def _bucket(x, planes):
    """The place of the sides of the planes, first plane first, among Gray codes 0, 1, 3, 2 ..."""
    R = planes.shape[1]
    sides = sum(2 ** (R - 1 - r) for r in range(R) if x @ planes[:, r] > 0)
    return [i ^ (i >> 1) for i in range(2**R)].index(sides)


def _drawn(draws, density):
    """(key, how many keys it stands for) of each draw."""
    share = np.cumsum(density) / density.sum()
    keys = [min(int(sum(share <= u)), len(density) - 1) for u in draws]
    return [(j, density.sum() / (len(draws) * density[j])) for j in keys]


def _attended(q, k, v, seen, allowed):
    """seen[b, t, n]: (key, weight) pairs; softmax with weights in front of the exponentials."""
    (B, T, N, H), K = q.shape, k.shape[2]
    out = np.zeros((B, T, N, v.shape[-1]))
    for (b, t, n), pairs in seen.items():
        ok = visible(allowed, b, n, t, k.shape[1])
        pairs, g = [(j, w) for j, w in pairs if j in ok], n * K // N
        e = np.array([w * np.exp(q[b, t, n] @ k[b, j, g] / np.sqrt(H)) for j, w in pairs])
        if pairs:
            out[b, t, n] = sum(x * v[b, j, g] for x, (j, _) in zip(e, pairs, strict=True)) / e.sum()
    return out


def hyper_attention(q, k, v, planes, draws, block_size, density=None, allowed=None):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    blocks = -(-S // block_size)
    seen = {}
    for b, n in np.ndindex(B, N):
        g = n * K // N
        rows = sorted(range(T), key=lambda t: _bucket(q[b, t, n], planes))
        columns = sorted(range(S), key=lambda s: _bucket(k[b, s, g], planes))
        samples = _drawn(draws, np.ones(S) if density is None else density[b, :, g])
        for place, t in enumerate(rows):
            u = place // -(-T // blocks)
            own = columns[u * block_size : (u + 1) * block_size]
            far = [(j, w) for j, w in samples if j not in own]
            seen[b, t, n] = [(j, 1.0) for j in own] + far
    return _attended(q, k, v, seen, allowed)


def hyper_attention_causal(q, k, v, planes, draws, block_size, threshold, allowed=None):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    seen = {}
    for b, t, n in np.ndindex(B, T, N):
        g, mine = n * K // N, _bucket(q[b, t, n], planes)
        near = range(t // threshold * threshold, min(t + 1, S))
        pairs = [(j, 1.0) for j in near]
        length = threshold
        while length < T:
            start = (t // length - 1) * length
            keys = list(range(start, min(start + length, S))) if t // length % 2 else []
            if keys:
                columns = sorted(keys, key=lambda s: _bucket(k[b, s, g], planes))
                codes = [_bucket(k[b, s, g], planes) for s in columns]
                below, upto = sum(c < mine for c in codes), sum(c <= mine for c in codes)
                u = min((below + upto) // 2, len(keys) - 1) // block_size
                own = columns[u * block_size : (u + 1) * block_size]
                drawn = [(keys[j], w) for j, w in _drawn(draws, np.ones(len(keys)))]
                pairs += [(j, 1.0) for j in own] + [(j, w) for j, w in drawn if j not in own]
            length *= 2
        seen[b, t, n] = pairs
    return _attended(q, k, v, seen, allowed)
