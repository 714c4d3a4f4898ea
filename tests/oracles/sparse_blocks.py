"""Oracles of attnjax.ops.sparse, blocks chosen by pooled maps and by learned scores: float64 loops.

What `choose` holds is read as the number that it is: k the count of blocks, least the lowest log of
a share, p the share of a head's mass.
"""

import numpy as np

from tests.oracles.plain import blend, both, softmax, weights


def _cut(length, block):
    """The tokens of each block."""
    return [range(i, min(i + block, length)) for i in range(0, length, block)]


def _reach(mass, share):
    """The keys of the fewest largest entries of a dict whose sum reaches the share of the whole."""
    taken, total = [], sum(mass.values())
    for key in sorted(mass, key=mass.get, reverse=True):
        if sum(mass[x] for x in taken) >= share * total:
            break
        taken.append(key)
    return taken


def _rotated(x, position, base):
    """One vector turned as complex numbers, the second half imaginary."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * base ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def _rotated_tokens(x, base):
    out = np.zeros_like(x)
    for b, t, n in np.ndindex(x.shape[:3]):
        out[b, t, n] = _rotated(x[b, t, n], t, base)
    return out


# -------------------------------------------------------------------------------- SeerAttention


def _gate(q, k, w_q, w_k, blocks, base, b, n, u):
    """{block: p_ub} over the blocks that begin before block u of the queries ends."""
    K, queries = k.shape[2], _cut(q.shape[1], blocks[0])[u]
    mean_q = sum(q[b, i, n] for i in queries) / len(queries)
    g = _rotated(mean_q @ w_q[n], queries[0], base)
    scores = {}
    for c, keys in enumerate(_cut(k.shape[1], blocks[1])):
        if keys[0] <= queries[-1]:
            kv = n * K // q.shape[2]
            inside = np.array([k[b, j, kv] for j in keys])
            features = np.concatenate([inside.max(0), inside.min(0), inside.mean(0)])
            h = _rotated(features @ w_k[kv * len(w_k) // K], keys[0], base)
            scores[c] = g @ h / np.sqrt(len(g))
    return dict(zip(scores, softmax(np.array(list(scores.values()))), strict=True))


def seer_attention(q, k, v, w_q, w_k, blocks, choose, allowed=None):
    (B, T, N, _), S, base = q.shape, k.shape[1], 10000.0
    seen = np.zeros((B, N, T, S), bool)
    for b, n in np.ndindex(B, N):
        for u, queries in enumerate(_cut(T, blocks[0])):
            share = _gate(q, k, w_q, w_k, blocks, base, b, n, u)
            own = queries[0] // blocks[1]
            before = sorted((c for c in share if c < own), key=share.get, reverse=True)
            if "k" in choose.keywords:
                taken = before[: choose.keywords["k"] - (own in share)]
            else:
                taken = [c for c in before if np.log(share[c]) >= choose.keywords["least"]]
            for i in queries:
                for j in range(min(i + 1, S)):
                    seen[b, n, i, j] = j // blocks[1] in (own, *taken)
    q, k = _rotated_tokens(q, base), _rotated_tokens(k, base)
    return blend(weights(q, k, both(allowed, seen)), v)


def _seer_truth(q, k, blocks, base):
    """The dense map, its largest weight in each block, rows to sum one: (B,N,U,n)."""
    (B, T, N, _), S = q.shape, k.shape[1]
    causal = np.array([[j <= i for j in range(S)] for i in range(T)])
    dense = weights(_rotated_tokens(q, base), _rotated_tokens(k, base), causal)
    rows, columns = _cut(T, blocks[0]), _cut(S, blocks[1])
    peak = np.zeros((B, N, len(rows), len(columns)))
    for b, n, u, c in np.ndindex(peak.shape):
        peak[b, n, u, c] = max(dense[b, n, i, j] for i in rows[u] for j in columns[c])
    return peak / peak.sum(-1, keepdims=True)


# ---------------------------------------------------------------------------------- FlexPrefill


def _divergence(p, q):
    """Jensen and Shannon's, of two dense distributions."""
    kl = lambda a, b: sum(x * np.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)
    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return (kl(p, m) + kl(q, m)) / 2


def _pattern(q, k, block_size, gamma, tau, min_budget):
    """(pairs (u, block) that one head sees, whether they are query-aware); q, k (T,H)."""
    (T, H), cut = q.shape, _cut(len(q), block_size)
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
        seen = set(_reach(share, gamma))
    else:
        seen = set()
        for j in _reach({j: w[:, j].sum() for j in range(T)}, gamma):
            seen |= {(u, j // block_size) for u in range(j // block_size, len(cut))}
        on = lambda d: sum(w[row, i - d] for row, i in enumerate(last) if i >= d)
        for d in _reach({d: on(d) for d in range(T)}, gamma):
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


def flexprefill_by_query(q, k, v, block_size, gamma, allowed=None):
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    seen = np.zeros((B, N, T, S), bool)
    cut = _cut(S, block_size)
    for b, n, i in np.ndindex(B, N, T):
        own = i // block_size
        mean = lambda keys, b=b, n=n: sum(k[b, j, n * K // N] for j in keys) / len(keys)
        between = {c: q[b, i, n] @ mean(cut[c]) for c in range(1, min(own, len(cut)))}
        mass = {c: np.exp(s / np.sqrt(H)) for c, s in between.items()}
        taken = (0, own, *_reach(mass, gamma))
        for j in range(min(i + 1, S)):
            seen[b, n, i, j] = j // block_size in taken
    return blend(weights(q, k, both(allowed, seen)), v)


# ----------------------------------------------------------------------- blocks of grids


def _blocks_of_cells(shape, block):
    """{block: its cells}, cells numbered in row-major order."""
    found = {}
    for cell, place in enumerate(np.ndindex(*shape)):
        at = tuple(x // y for x, y in zip(place, block, strict=True))
        found.setdefault(at, []).append(cell)
    return found


def vmoba(q, k, v, shape, block, choose):
    (B, T, N, H), K = q.shape, k.shape[2]
    seen = np.zeros((B, N, T, T), bool)
    found = _blocks_of_cells(shape, block)
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
            pairs = set(_reach(mass, choose.keywords["p"]))
        for i, at in pairs | {(i, liked[i][0]) for i in range(T)}:
            seen[b, n, i, found[at]] = True
    return blend(weights(q, k, seen), v)


def bi_level_routing_attention(q, k, v, kernel, shape, regions, top_k):
    (B, T, N, _), K = q.shape, k.shape[2]
    found = _blocks_of_cells(shape, [int(np.ceil(n / regions)) for n in shape])
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


# ------------------------------------------------------------------------- dynamic mask attention


def dynamic_mask_attention(q, k, v, w, a, window, block_size, allowed=None):
    """The blocks are those of the kernel: what is seen does not depend on them."""
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    delta = np.zeros((B, S, K))
    for b, j in np.ndindex(B, S):
        finite = np.where(np.isfinite(v[b, j]), v[b, j], 0.0).reshape(-1)
        delta[b, j] = np.exp(a * np.log1p(np.exp(finite @ w)))
    seen = np.zeros((B, N, T, S), bool)
    for b, n, i in np.ndindex(B, N, T):
        past = range(min(i + 1, S))
        score = lambda j, b=b, n=n: -delta[b, j, n * K // N]
        seen[b, n, i, sorted(past, key=score)[:window]] = True
    logit = lambda b, n, i, j: (
        q[b, i, n] @ k[b, j, n * K // N] / np.sqrt(H) + delta[b, j, n * K // N]
    )
    return blend(weights(q, k, both(allowed, seen), logit=logit), v)
