"""The oracle of `flexprefill` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, both, cut_tail, reach, softmax, weights


def _divergence(p, q):
    """Jensen and Shannon's, of two dense distributions."""
    kl = lambda a, b: sum(x * np.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)
    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return (kl(p, m) + kl(q, m)) / 2


def _pattern(q, k, block_size, gamma, tau, min_budget):
    """(pairs (u, block) that one head sees, whether they are query-aware); q, k (T,H)."""
    (T, H), cut = q.shape, cut_tail(len(q), block_size)
    mean = lambda x, at: sum(x[i] for i in at) / len(at)
    last = range(max(T - block_size, 0), T)
    w = np.zeros((len(last), T))
    for row, i in enumerate(last):
        w[row, : i + 1] = softmax(np.array([q[i] @ k[j] for j in range(i + 1)]) / np.sqrt(H))
    w /= len(last)
    true = [sum(w[:, j].sum() for j in keys) for keys in cut]
    guess = softmax(np.array([mean(q, last) @ mean(k, keys) for keys in cut]) / np.sqrt(H))
    share = {}
    for u, queries in enumerate(cut):
        logits = [mean(q, queries) @ mean(k, keys) / np.sqrt(H) for keys in cut[: u + 1]]
        share |= {(u, c): p for c, p in enumerate(softmax(np.array(logits)))}
    aware = np.sqrt(_divergence(guess, true)) < tau
    if aware:
        seen = set(reach(share, gamma))
    else:
        seen = set()
        for j in reach({j: w[:, j].sum() for j in range(T)}, gamma):
            seen |= {(u, j // block_size) for u in range(j // block_size, len(cut))}
        on = lambda d: sum(w[row, i - d] for row, i in enumerate(last) if i >= d)
        for d in reach({d: on(d) for d in range(T)}, gamma):
            seen |= {(i // block_size, (i - d) // block_size) for i in range(d, T)}
    for u in range(len(cut)):
        best = sorted(range(1, u), key=lambda c, u=u: share[u, c], reverse=True)
        budget = max(2, int(np.ceil(min_budget / block_size)))
        seen |= {(u, c) for c in (0, u, *best[: budget - 2])}
    return seen, aware


def flexprefill(q, k, v, block_size, gamma, tau, min_budget, allowed=None):
    (B, T, N, _), K = q.shape, k.shape[2]
    seen = np.zeros((B, N, T, T), bool)
    for b, n in np.ndindex(B, N):
        pairs, _ = _pattern(q[b, :, n], k[b, :, n * K // N], block_size, gamma, tau, min_budget)
        for i in range(T):
            for j in range(i + 1):
                seen[b, n, i, j] = (i // block_size, j // block_size) in pairs
    return blend(weights(q, k, both(allowed, seen)), v)
