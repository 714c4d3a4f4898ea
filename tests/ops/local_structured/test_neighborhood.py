"""The oracle of `neighborhood` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, both, weights


def _neighbors(x, extent, window, stride, dilation, causal):
    """The `window` positions on one axis that position x sees.

    Positions of one dilation class (equal modulo `dilation`) are counted 0, 1, 2, ...; runs of
    `stride` of them share the window of their leader, the middle one (right of the middle when
    the run is even), and the window is shifted inward at the borders.  On a causal axis the leader
    is the last of its run, its window ends with it, and what lies after x is dropped.
    """
    members = [p for p in range(extent) if p % dilation == x % dilation]
    place = members.index(x)
    if causal:
        leader = min(place // stride * stride + stride - 1, len(members) - 1)
        return [p for p in members[max(leader - window + 1, 0) : leader + 1] if p <= x]
    leader = min(place // stride * stride + stride // 2, len(members) - 1)
    start = min(max(leader - window // 2, 0), max(len(members) - window, 0))
    return members[start : start + window]


def neighborhood_attention(
    q, k, v, shape, window, stride=1, dilation=1, causal=False, table=None, allowed=None
):
    axes = len(shape)
    per_axis = lambda x: (x,) * axes if isinstance(x, int) else tuple(x)
    window, stride, dilation, causal = map(per_axis, (window, stride, dilation, causal))
    cells = list(np.ndindex(*shape))
    sees = lambda c, d, a: (
        d[a] in _neighbors(c[a], shape[a], window[a], stride[a], dilation[a], causal[a])
    )
    near = np.array([[all(sees(c, d, a) for a in range(axes)) for d in cells] for c in cells])
    H, K, N = q.shape[-1], k.shape[2], q.shape[2]

    def score(b, n, i, j):
        s = q[b, i, n] @ k[b, j, n * K // N] / np.sqrt(H)
        if table is None:
            return s
        steps = [(cells[j][a] - cells[i][a]) // dilation[a] + window[a] - 1 for a in range(axes)]
        return s + table[(n, *steps)]

    return blend(weights(q, k, both(allowed, near), logit=score), v)
