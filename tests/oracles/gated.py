"""Oracles of attnjax.ops.recurrent: gated recurrences, as float64 loops."""

import numpy as np


def linear_attention(q, k, v):
    def phi(x):
        return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))

    (B, T, N, _), (K, D) = q.shape, v.shape[2:]
    out = np.zeros((B, T, N, D))
    for b, t, n in np.ndindex(B, T, N):
        w = [phi(q[b, t, n]) @ phi(k[b, j, n * K // N]) for j in range(t + 1)]
        out[b, t, n] = sum(w[j] * v[b, j, n * K // N] for j in range(t + 1)) / sum(w)
    return out


def _sums(q, k, v, log_decay=None, own=None, late=0):
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


def _unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def _rms(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def simple_gla(q, k, v, log_decay):
    return _sums(q, k, v, log_decay)


def gla(q, k, v, log_decay):
    return _sums(q, k, v, log_decay)


def hgrn2(q, log_forget, v):
    return _sums(q, 1 - np.exp(log_forget), v, log_forget)


def delta_net(q, k, v, beta):
    return gated_delta_net(q, k, v, beta, np.zeros_like(beta))


def gated_delta_net(q, k, v, beta, log_decay):
    """Each query walks back: what it reads at token j passes on as a (I - beta k k^T) q."""
    (B, T, N, _), (K, D) = q.shape, v.shape[2:]
    q, k, out = _unit(q), _unit(k), np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        c = q[b, i, n]
        for j in reversed(range(i + 1)):
            key, value, strength = k[b, j, n * K // N], v[b, j, n * K // N], beta[b, j, n]
            out[b, i, n] += strength * (c @ key) * value
            c = np.exp(log_decay[b, j, n]) * (c - strength * (c @ key) * key)
    return out


def retention(q, k, v):
    B, T, N, H = q.shape
    gamma = 1 - 2.0 ** (-5 - np.arange(N))
    return _sums(q / np.sqrt(H), k, v, np.broadcast_to(np.log(gamma), (B, T, N)))


def lightning_attention(q, k, v, log_decay):
    """(Q K^T * M) V."""
    (_, T, N, _), K = q.shape, k.shape[2]
    k, v = np.repeat(k, N // K, axis=2), np.repeat(v, N // K, axis=2)
    distance = np.arange(T)[:, None] - np.arange(T)
    M = np.exp(log_decay[:, None, None] * np.maximum(distance, 0)) * (distance >= 0)
    return np.einsum("nts,btnh,bsnh,bsnd->btnd", M, q, k, v)


def gated_lightning_attention(q, k, v, log_decay, gate):
    def silu(x):
        return x * _sigmoid(x)

    out = lightning_attention(silu(q), silu(k), v, log_decay)
    return _rms(out.reshape(*out.shape[:2], -1)).reshape(out.shape) * gate


def mamba2(x, dt, A, B, C, D):
    """The semiseparable matrix L * (C B^T), applied to dt x, head by head."""
    (batch, T, N, _), K = x.shape, B.shape[2]
    out = np.zeros_like(x)
    for b, t, n in np.ndindex(batch, T, N):
        for s in range(t + 1):
            L = np.exp(A[n] * dt[b, s + 1 : t + 1, n].sum())
            weight = L * (C[b, t, n * K // N] @ B[b, s, n * K // N])
            out[b, t, n] += weight * dt[b, s, n] * x[b, s, n]
        out[b, t, n] += D[n] * x[b, t, n]
    return out


def rwkv6(q, k, v, log_decay, u):
    return _sums(q, k, v, log_decay, own=u, late=1)


def mlstm(q, k, v, log_i, log_f):
    """Without a stabilizer: sums over pairs in float64."""
    k = np.repeat(k, q.shape[2] // k.shape[2], axis=2) * np.exp(log_i)[..., None]
    v = np.repeat(v, q.shape[2] // v.shape[2], axis=2)
    k = k / np.sqrt(q.shape[-1])
    mass = _sums(q, k, np.ones_like(v[..., :1]), log_f)
    return _sums(q, k, v, log_f) / np.maximum(np.abs(mass), 1)


def regla(q, k, v, gate, refine):
    def phi(x):
        return np.exp(x - x.max(-1, keepdims=True))

    g, r = _sigmoid(gate), _sigmoid(refine)
    refined = (1 - r) * g**2 + r * (1 - (1 - g) ** 2)
    return _rms(_sums(phi(q), phi(k), v, np.log(refined)))


def cottention(q, k, v, m):
    count = np.arange(1, q.shape[1] + 1)[:, None, None]
    return _sums(_unit(q), _unit(k), v) / count ** _sigmoid(m)[:, None]


def cottention_full(q, k, v, m):
    (B, T, N, _), (S, K, D) = q.shape, v.shape[1:]
    q, k, out = _unit(q), _unit(k), np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        seen = sum(q[b, i, n] @ k[b, j, n * K // N] * v[b, j, n * K // N] for j in range(S))
        out[b, i, n] = seen / S ** _sigmoid(m[n])
    return out
