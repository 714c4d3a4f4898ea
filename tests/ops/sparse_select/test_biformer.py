"""The oracle of `biformer` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, blocks_of_cells, weights


def bi_level_routing_attention(q, k, v, kernel, shape, regions, top_k):
    (B, T, N, _), K = q.shape, k.shape[2]
    found = blocks_of_cells(shape, [int(np.ceil(n / regions)) for n in shape])
    seen = np.zeros((B, N, T, T), bool)
    for b in range(B):
        mean = lambda x, cells, n, b=b: sum(x[b, j, n] for j in cells) / len(cells)
        for cells in found.values():
            likes = {
                at: sum(mean(q, cells, n) @ mean(k, other, n * K // N) for n in range(N))
                for at, other in found.items()
            }
            for at in sorted(likes, key=likes.get, reverse=True)[:top_k]:
                for i in cells:
                    seen[b, :, i, found[at]] = True
    out = blend(weights(q, k, seen), v)
    if kernel is not None:
        places = list(np.ndindex(*shape))
        for b, i, n, j in np.ndindex(B, T, N, T):
            dy, dx = (y - x + 2 for x, y in zip(places[i], places[j], strict=True))
            if 0 <= dy < 5 and 0 <= dx < 5:
                out[b, i, n] += kernel[dy, dx, n] * v[b, j, n * K // N]
    return out
