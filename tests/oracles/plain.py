"""Loops that the oracles share: visible keys, softmax, and one attention row at a time.

Everything is NumPy in float64.  `allowed` is a boolean array (T,S) or (B|1,N|1,T,S), or None.
"""

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
