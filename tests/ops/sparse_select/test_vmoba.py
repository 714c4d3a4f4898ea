"""The oracle of `vmoba` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, blocks_of_cells, reach, weights


def vmoba(q, k, v, shape, block, choose):
    (B, T, N, H), K = q.shape, k.shape[2]
    seen = np.zeros((B, N, T, T), bool)
    found = blocks_of_cells(shape, block)
    for b, n in np.ndindex(B, N):
        mass = {}
        for i in range(T):
            for at, cells in found.items():
                mean = sum(k[b, j, n * K // N] for j in cells) / len(cells)
                mass[i, at] = np.exp(q[b, i, n] @ mean / np.sqrt(H))
        liked = [sorted(found, key=lambda at, i=i: mass[i, at], reverse=True) for i in range(T)]
        if "k" in choose.keywords:
            pairs = {(i, at) for i in range(T) for at in liked[i][: choose.keywords["k"]]}
        else:
            pairs = set(reach(mass, choose.keywords["p"]))
        for i, at in pairs | {(i, liked[i][0]) for i in range(T)}:
            seen[b, n, i, found[at]] = True
    return blend(weights(q, k, seen), v)
