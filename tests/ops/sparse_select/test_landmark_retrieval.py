"""The oracle of `landmark_retrieval` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, causal_too, landmark_weights


def _turned(x, position, base):
    half = len(x) // 2
    angle = position * base ** (-np.arange(half) / half)
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag])


def landmark_retrieval(q, k, v, block, top_k, base, heads=None, allowed=None):
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    group = block + 1
    own = lambda i: i // group

    def logit(b, n, i, j):
        """With the query behind a prefix of top_k + 1 blocks, of which the first is for all old."""
        at = (top_k + 1) * group + i % group
        slot = max(top_k + 1 - (own(i) - own(j)), 0)
        turned = (
            _turned(q[b, i, n], at, base),
            _turned(k[b, j, n * K // N], slot * group + j % group, base),
        )
        return turned[0] @ turned[1] / np.sqrt(H)

    seen, X = {}, heads or N
    for b, n, i in np.ndindex(B, N, T):
        together = [m for m in range(N) if m * X // N == n * X // N]
        likes = {
            c: max(logit(b, m, i, c * group + block) for m in together)
            for c in range(min(own(i), S // group))
        }
        # a query behind all keys has no own block, and one more of the others
        count = top_k if own(i) * group < S else top_k + 1
        seen[b, n, i] = [own(i), *sorted(likes, key=lambda c: -likes[c])[:count]]
    ok = causal_too(q, k, allowed)
    return blend(landmark_weights(q, k, block, ok, seen, logit), v)
