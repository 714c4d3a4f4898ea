"""Oracles of attnjax.ops.softmax_core: each paper's formula in float64 loops."""

import numpy as np

from tests.oracles.plain import blend, both, causal, sigmoid, softmax, visible, weights


def multi_head_attention(q, k, v, allowed=None):
    return blend(weights(q, k, allowed), v)


def luong_dot(q, k, v, allowed=None):
    score = lambda b, n, i, j: q[b, i, n] @ k[b, j, _kv(q, k, n)]
    return blend(weights(q, k, allowed, logit=score), v)


def luong_general(q, k, v, w, allowed=None):
    score = lambda b, n, i, j: q[b, i, n] @ w @ k[b, j, _kv(q, k, n)]
    return blend(weights(q, k, allowed, logit=score), v)


def luong_concat(q, k, v, w_query, w_key, w_score, allowed=None):
    w = np.concatenate([w_query, w_key])  # one matrix acts on [h_t; h_s]

    def score(b, n, i, j):
        return w_score @ np.tanh(np.concatenate([q[b, i, n], k[b, j, _kv(q, k, n)]]) @ w)

    return blend(weights(q, k, allowed, logit=score), v)


def luong_location(q, v, w, allowed=None):
    return blend(weights(q, v, allowed, logit=lambda b, n, i, j: w[j] @ q[b, i, n]), v)


def luong_local_monotonic(q, k, v, radius, allowed=None):
    T, S = q.shape[1], k.shape[1]
    near = np.array([[abs(j - i) <= radius for j in range(S)] for i in range(T)])
    return luong_dot(q, k, v, both(allowed, near))


def luong_local_predictive(q, k, v, center, radius, allowed=None):
    (B, T, N, _), S = q.shape, k.shape[1]
    near, bell = np.zeros((B, N, T, S), bool), np.zeros((B, N, T, S))
    for b in range(B):
        for n in range(N):
            for i in range(T):
                for j in range(S):
                    off = j - center[b, i, n]
                    near[b, n, i, j] = abs(off) <= radius
                    bell[b, n, i, j] = np.exp(-(off**2) / (2 * (radius / 2) ** 2))
    score = lambda b, n, i, j: q[b, i, n] @ k[b, j, _kv(q, k, n)]
    return blend(weights(q, k, both(allowed, near), logit=score) * bell, v)


def forgetting_attention(q, k, v, log_f, allowed=None):
    H = q.shape[-1]
    allowed = causal(q.shape[1], k.shape[1]) if allowed is None else allowed

    def score(b, n, i, j):
        # the gates between key and query; for a key ahead of its query the sum runs backwards
        lo, hi, sign = (j, i, 1) if j <= i else (i, j, -1)
        decay = sign * sum(log_f[b, t, n] for t in range(lo + 1, hi + 1))
        return q[b, i, n] @ k[b, j, _kv(q, k, n)] / np.sqrt(H) + decay

    return blend(weights(q, k, allowed, logit=score), v)


def clipped_softmax_attention(q, k, v, gamma, zeta, allowed=None):
    clipped = lambda x: np.clip((zeta - gamma) * softmax(x) + gamma, 0, 1)
    return blend(weights(q, k, allowed, clipped), v)


def gated_attention(q, k, v, gate, allowed=None):
    out = multi_head_attention(q, k, v, allowed)
    for b, i, n in np.ndindex(*gate.shape):
        out[b, i, n] *= sigmoid(gate[b, i, n])
    return out


def selective_attention(q, k, v, allowed=None):
    (B, T, _, H), S = q.shape, k.shape[1]
    allowed = causal(T, S) if allowed is None else allowed
    F = np.zeros((B, T, S))
    for b in range(B):
        for i in range(T):
            for earlier in range(i):
                for j in visible(allowed, b, 0, earlier, S):
                    if j not in (0, earlier):  # the first token and the query itself stay
                        F[b, i, j] += max(0.0, q[b, earlier, 0] @ k[b, j, 0] / np.sqrt(H))
    score = lambda b, n, i, j: q[b, i, n] @ k[b, j, _kv(q, k, n)] / np.sqrt(H) - F[b, i, j]
    return blend(weights(q, k, allowed, logit=score), v)


def softpick_attention(q, k, v, allowed=None):
    def softpick(x):
        e = np.exp(x) - 1
        return np.maximum(e, 0) / (np.abs(e).sum() + 1e-6)

    allowed = causal(q.shape[1], k.shape[1]) if allowed is None else allowed
    return blend(weights(q, k, allowed, softpick), v)


def rela(q, k, v, gain, allowed=None):
    return _rms_norm(_rectified(q, k, v, allowed), gain)


def rela_gated(q, k, v, gain, gate, allowed=None):
    out = _rectified(q, k, v, allowed)
    return sigmoid(gate * out) * _rms_norm(out, gain)


def _rectified(q, k, v, allowed):
    return blend(weights(q, k, allowed, lambda x: np.maximum(x, 0)), v)


def _rms_norm(x, gain):
    out = np.zeros_like(x)
    for b, i in np.ndindex(*x.shape[:2]):
        heads = x[b, i].ravel()
        out[b, i] = x[b, i] / np.sqrt(np.mean(heads**2) + 1e-6) * gain
    return out


def cog_attention(q, k, v, allowed=None):
    def signed(x):
        s = np.sign(x) * np.exp(np.abs(x) - np.abs(x).max())
        return s / np.abs(s).sum()

    allowed = causal(q.shape[1], k.shape[1]) if allowed is None else allowed
    return blend(weights(q, k, allowed, signed), v)


def softplus_attention(q, k, v, power, offset, allowed=None):
    (_, T, _, H), S = q.shape, k.shape[1]
    allowed = causal(T, S) if allowed is None else allowed

    def reweighted(x):
        n = len(x)
        a = np.logaddexp(0, np.log(H) * np.log(n) / np.sqrt(H) * x)
        sharp = np.maximum(n * a / a.sum() - offset, 0) ** power
        return sharp / sharp.sum() if sharp.sum() > 0 else sharp

    dot = lambda b, n, i, j: q[b, i, n] @ k[b, j, _kv(q, k, n)]
    return blend(weights(q, k, allowed, reweighted, dot), v)


def pointer_attention(q, k, w_query, w_key, w_score, allowed=None):
    def score(b, n, i, j):
        return w_score @ np.tanh(w_key.T @ k[b, j, _kv(q, k, n)] + w_query.T @ q[b, i, n])

    return weights(q, k, allowed, logit=score)


def _kv(q, k, n):
    """The key/value head that serves query head n."""
    return n // (q.shape[2] // k.shape[2])
