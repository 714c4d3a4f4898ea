"""Loops that the oracles share: visible keys, softmax, and one attention row at a time.

Everything is NumPy in float64.  `allowed` is a boolean array (T,S) or (B|1,N|1,T,S), or None.
"""

import math

import numpy as np


def causal(T, S):
    """Key j is visible to query i when j <= i."""
    return np.array([[j <= i for j in range(S)] for i in range(T)])


def both(a, b):
    """The pairs that both arrays allow; None allows all."""
    if a is None or b is None:
        return b if a is None else a
    return np.logical_and(a, b)


def visible(allowed, b, n, i, S):
    """The keys that query i of head n of sequence b may see."""
    if allowed is None:
        return list(range(S))
    full = allowed if allowed.ndim == 4 else allowed[None, None]
    row = full[b if full.shape[0] > 1 else 0, n if full.shape[1] > 1 else 0, i]
    return [j for j in range(S) if row[j]]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def weights(q, k, allowed, normalize=softmax, logit=None):
    """Weights (B,N,T,S); `logit(b, n, i, j)` is q.k / sqrt(H) when not given."""
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    logit = logit or (lambda b, n, i, j: q[b, i, n] @ k[b, j, n * K // N] / np.sqrt(H))
    out = np.zeros((B, N, T, S))
    for b in range(B):
        for n in range(N):
            for i in range(T):
                js = visible(allowed, b, n, i, S)
                if js:
                    out[b, n, i, js] = normalize(np.array([logit(b, n, i, j) for j in js]))
    return out


def blend(w, v):
    """sum_j w[b,n,i,j] v[b,j,n's group], as (B,T,N,D); weight zero ignores the value, even NaN."""
    (B, N, T, S), (K, D) = w.shape, v.shape[2:]
    out = np.zeros((B, T, N, D))
    for b in range(B):
        for n in range(N):
            for i in range(T):
                for j in range(S):
                    if w[b, n, i, j] != 0:
                        out[b, i, n] += w[b, n, i, j] * v[b, j, n * K // N]
    return out


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def standard(x):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True))


def weighted(q, k, v, weigh, causal):
    """o_i = sum_j weigh(q_i, k_j) v_j / sum_j weigh(q_i, k_j), one pair at a time."""
    (B, T, N, _), (S, K, D) = q.shape, v.shape[1:]
    out = np.zeros((B, T, N, D))
    for b, t, n in np.ndindex(B, T, N):
        m = n * K // N
        w = np.array([weigh(q[b, t, n], k[b, j, m]) for j in range(t + 1 if causal else S)])
        out[b, t, n] = sum(w[j] * v[b, j, m] for j in range(len(w))) / w.sum()
    return out


def elu1(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def cut_tail(length, block):
    """The tokens of each block."""
    return [range(i, min(i + block, length)) for i in range(0, length, block)]


def heads(x, N):
    """(B,S,K,H) -> (B,S,N,H)."""
    return np.repeat(x, N // x.shape[2], axis=2)


def reach(mass, share):
    """The keys of the fewest largest entries of a dict whose sum reaches the share of the whole."""
    taken, total = [], sum(mass.values())
    for key in sorted(mass, key=mass.get, reverse=True):
        if sum(mass[x] for x in taken) >= share * total:
            break
        taken.append(key)
    return taken


def sums(q, k, v, log_decay=None, own=None, late=0):
    """sum_{j <= i} (q_i . exp(fades from j to i) k_j) v_j, pair by pair.

    log_decay (B,T,N) or (B,T,N,H); `own` (N,H) weighs a token's own pair; with `late` = 1 the fade
    of token i itself does not count.
    """
    (B, T, N, H), (K, D) = q.shape, v.shape[2:]
    if log_decay is None:
        log_decay = np.zeros((B, T, N, H))
    if log_decay.ndim == 3:
        log_decay = np.repeat(log_decay[..., None], H, axis=-1)
    out = np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        for j in range(i + 1):
            fade = np.exp(sum(log_decay[b, l, n] for l in range(j + 1, i + 1 - late)))
            if own is not None and i == j:
                fade = own[n]
            weight = (q[b, i, n] * fade) @ k[b, j, n * K // N]
            out[b, i, n] += weight * v[b, j, n * K // N]
    return out


def infini(q, k, v, beta, segment, recalled):
    """`recalled(query, keys, values)`: what a memory of some whole segments says of a query."""
    (B, T, N, H), D = q.shape, v.shape[-1]
    k, v = heads(k, N), heads(v, N)
    out = np.zeros((B, T, N, D))
    for b, t, n in np.ndindex(B, T, N):
        start = t // segment * segment
        w = softmax(k[b, start : t + 1, n] @ q[b, t, n] / np.sqrt(H))
        local = w @ v[b, start : t + 1, n]
        past = recalled(elu1(q[b, t, n]), elu1(k[b, :start, n]), v[b, :start, n])
        gate = sigmoid(beta[n])
        out[b, t, n] = gate * past + (1 - gate) * local
    return out


def of_exponents(x, y):
    return sum(math.exp(a + b) for a, b in zip(x, y, strict=True))


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def rms(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def bucket(x, planes):
    """The place of the sides of the planes, first plane first, among Gray codes 0, 1, 3, 2 ..."""
    R = planes.shape[1]
    sides = sum(2 ** (R - 1 - r) for r in range(R) if x @ planes[:, r] > 0)
    return [i ^ (i >> 1) for i in range(2**R)].index(sides)


def drawn_keys(draws, density):
    """(key, how many keys it stands for) of each draw."""
    share = np.cumsum(density) / density.sum()
    keys = [min(int(sum(share <= u)), len(density) - 1) for u in draws]
    return [(j, density.sum() / (len(draws) * density[j])) for j in keys]


def landmark_weights(q, k, block, ok, seen=None, logit=None):
    """Weights (B,N,T,S); seen[b,n,i] are the blocks that the query looks at, or all if None."""
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    group = block + 1
    logit = logit or (lambda b, n, i, j: q[b, i, n] @ k[b, j, n * K // N] / np.sqrt(H))
    out = np.zeros((B, N, T, S))
    for b, n, i in np.ndindex(B, N, T):
        tokens, gates = {}, {}
        for c in range(-(-S // group)):
            if seen is not None and c not in seen[b, n, i]:
                continue
            places = range(c * group, min(c * group + block, S))
            tokens[c] = [j for j in places if ok[b, n, i, j]]
            landmark = c * group + block
            if c < i // group and tokens[c] and landmark < S and ok[b, n, i, landmark]:
                gates[c] = landmark
        own = tokens.get(i // group, [])
        main = own + list(gates.values())
        if not main:
            continue
        p = softmax(np.array([logit(b, n, i, j) for j in main]))
        out[b, n, i, own] = p[: len(own)]
        for c, mass in zip(gates, p[len(own) :], strict=True):
            inside = softmax(np.array([logit(b, n, i, j) for j in tokens[c]]))
            out[b, n, i, tokens[c]] = mass * inside
    return out


def attended(q, k, v, seen, allowed):
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


def causal_too(q, k, allowed):
    (B, T, N), S = q.shape[:3], k.shape[1]
    return np.broadcast_to(both(allowed, causal(T, S)), (B, N, T, S))


def silu(x):
    return x * sigmoid(x)


def gelu(x):
    """With the distribution function itself, not an approximation."""
    return x * np.vectorize(lambda y: (1 + math.erf(y / math.sqrt(2))) / 2, otypes=[float])(x)


def kv(q, k, n):
    """The key/value head that serves query head n."""
    return n // (q.shape[2] // k.shape[2])


def blocks_of_cells(shape, block):
    """{block: its cells}, cells numbered in row-major order."""
    found = {}
    for cell, place in enumerate(np.ndindex(*shape)):
        at = tuple(x // y for x, y in zip(place, block, strict=True))
        found.setdefault(at, []).append(cell)
    return found


def depthwise(x, kernel):
    """x (rows,columns,channels), kernel (k,k,channels): each channel by itself."""
    (rows, columns, _), k, out = x.shape, len(kernel), np.zeros(x.shape)
    for r, c, y, z in np.ndindex(rows, columns, k, k):
        i, j = r + y - k // 2, c + z - k // 2
        if 0 <= i < rows and 0 <= j < columns:
            out[r, c] += kernel[y, z] * x[i, j]
    return out
