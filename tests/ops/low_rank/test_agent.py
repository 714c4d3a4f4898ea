"""The oracle of `agent` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import softmax


def agent_attention(q, k, v, shape, agents, biases, kernel):
    (B, T, N, H), (S, K, D) = q.shape, v.shape[1:]
    (rows, columns), (r, c) = shape, agents
    cells = list(np.ndindex(rows, columns))
    pooled = []  # the cells of each agent: run i of r takes the rows y with floor(y r / rows) = i
    for i, j in np.ndindex(r, c):
        pooled.append(
            [t for t, (y, x) in enumerate(cells) if (y * r // rows, x * c // columns) == (i, j)]
        )
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        g = n * K // N
        tokens = [np.mean([q[b, t, n] for t in of], axis=0) for of in pooled]
        read = []
        for m, a in enumerate(tokens):
            w = softmax(
                np.array([a @ k[b, s, g] / np.sqrt(H) + biases[0][n, m, s] for s in range(S)])
            )
            read.append(sum(w[s] * v[b, s, g] for s in range(S)))
        for t, (y, x) in enumerate(cells):
            logits = [
                q[b, t, n] @ a / np.sqrt(H) + biases[1][n, t, m] for m, a in enumerate(tokens)
            ]
            out[b, t, n] = sum(w * o for w, o in zip(softmax(np.array(logits)), read, strict=True))
            for dy, dx in np.ndindex(3, 3):
                there = y + dy - 1, x + dx - 1
                if there in cells:
                    out[b, t, n] += kernel[dy, dx, n] * v[b, cells.index(there), g]
    return out
