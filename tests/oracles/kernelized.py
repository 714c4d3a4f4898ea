"""Oracles of attnjax.ops.recurrent: feature maps and sums over all tokens, as float64 loops."""

import math

import numpy as np

from tests.oracles import plain


def _weighted(q, k, v, weigh, causal):
    """o_i = sum_j weigh(q_i, k_j) v_j / sum_j weigh(q_i, k_j), one pair at a time."""
    (B, T, N, _), (S, K, D) = q.shape, v.shape[1:]
    out = np.zeros((B, T, N, D))
    for b, t, n in np.ndindex(B, T, N):
        m = n * K // N
        w = np.array([weigh(q[b, t, n], k[b, j, m]) for j in range(t + 1 if causal else S)])
        out[b, t, n] = sum(w[j] * v[b, j, m] for j in range(len(w))) / w.sum()
    return out


def _of_exponents(x, y):
    return sum(math.exp(a + b) for a, b in zip(x, y, strict=True))


def exponential_attention(q, k, v):
    return _weighted(q, k, v, _of_exponents, causal=True)


def exponential_attention_full(q, k, v):
    return _weighted(q, k, v, _of_exponents, causal=False)


def log_normal_attention(q, k, v, alpha, beta):
    return _weighted(alpha * q, beta * k, v, _of_exponents, causal=True)


def log_normal_attention_full(q, k, v, alpha, beta):
    return _weighted(alpha * q, beta * k, v, _of_exponents, causal=False)


def log_normal_diagonal_attention(q, k, v, alpha, beta, width):
    far = log_normal_attention_full(q, k, v, alpha, beta)
    near = np.array(
        [[i // width == j // width for j in range(k.shape[1])] for i in range(q.shape[1])]
    )
    return (far + plain.blend(plain.weights(q, k, near), v)) / 2


def _favor(projection):
    def feature(w, x):
        y = x / len(x) ** 0.25
        return math.exp(w @ y - y @ y / 2)

    return lambda x, y: sum(feature(w, x) * feature(w, y) for w in projection) / len(projection)


def favor_attention(q, k, v, projection):
    return _weighted(q, k, v, _favor(projection), causal=True)


def favor_attention_full(q, k, v, projection):
    return _weighted(q, k, v, _favor(projection), causal=False)


def hedgehog_attention(q, k, v, w_q, w_k):
    (B, T, N, _), (K, D) = q.shape, v.shape[2:]
    out = np.zeros((B, T, N, D))
    for b, t, n in np.ndindex(B, T, N):
        m = n * K // N
        a = q[b, t, n] @ w_q[n]
        y = [k[b, j, m] @ w_k[m] for j in range(t + 1)]
        w = np.array([np.exp(a + c).sum() + np.exp(-a - c).sum() for c in y])
        out[b, t, n] = sum(w[j] * v[b, j, m] for j in range(t + 1)) / w.sum()
    return out


def efficient_attention(q, k, v):
    (B, T, N, _), (S, K, _) = q.shape, k.shape[1:]
    w = np.zeros((B, N, T, S))
    for b, n, i in np.ndindex(B, N, T):
        rows = plain.softmax(q[b, i, n])
        keys = np.array([plain.softmax(column) for column in k[b, :, n * K // N].T])  # (H,S)
        w[b, n, i] = rows @ keys
    return plain.blend(w, v)


def efficient_scaled_attention(q, k, v):
    S, H = k.shape[1], q.shape[3]
    # the mean of q.k v over positions
    w = plain.weights(q, k, None, normalize=lambda s: s * np.sqrt(H) / S)
    return plain.blend(w, v)


def _cosine(x, y):
    return x @ y / np.sqrt(x @ x) / np.sqrt(y @ y)


def taylor_shift_direct(q, k, v, temperature, allowed=None):
    N, K = q.shape[2], k.shape[2]
    logit = lambda b, n, i, j: temperature[n] * _cosine(q[b, i, n], k[b, j, n * K // N])
    series = lambda s: (1 + s + s**2 / 2) / (1 + s + s**2 / 2).sum()
    return plain.blend(plain.weights(q, k, allowed, series, logit), v)


def taylor_shift(q, k, v, temperature):
    return taylor_shift_direct(q, k, v, temperature)


def _fastmax(x, y):
    s = sum((x - x.mean()) / x.std() * (y - y.mean()) / y.std())
    return 1 + s + s * s / 2


def fast_attention(q, k, v):
    return _weighted(q, k, v, _fastmax, causal=True)


def fast_attention_full(q, k, v):
    return _weighted(q, k, v, _fastmax, causal=False)


def flow_attention(q, k, v):
    (B, T, N, _), (S, K, D) = q.shape, v.shape[1:]
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        m = n * K // N
        c = plain.sigmoid(q[b, :, n]) @ plain.sigmoid(k[b, :, m]).T  # capacities (T,S)
        sink = (c / c.sum(0)).sum(1)
        source = (c / c.sum(1)[:, None]).sum(0)
        u = S * plain.softmax(np.minimum(source, 1))[:, None] * v[b, :, m]
        for i in range(T):
            taken = sum(c[i, j] / c[i].sum() * u[j] for j in range(S))
            out[b, i, n] = plain.sigmoid(sink[i] * T / S) * taken
    return out


def flow_attention_causal(q, k, v):
    (B, T, N, _), (K, D) = q.shape, v.shape[2:]
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        m = n * K // N
        c = plain.sigmoid(q[b, :, n]) @ plain.sigmoid(k[b, :, m]).T
        incoming = [sum(c[i, j] for j in range(i + 1)) / (i + 1) for i in range(T)]
        outgoing = [sum(c[i, j] for i in range(j + 1)) / (j + 1) for j in range(T)]
        sink = [sum(c[i, j] / outgoing[j] for j in range(i + 1)) / (i + 1) for i in range(T)]
        source = [sum(c[i, j] / incoming[i] for i in range(j + 1)) / (j + 1) for j in range(T)]
        e = [math.exp(min(s, 1)) for s in source]
        u = [e[j] / (sum(e[: j + 1]) / (j + 1)) * v[b, j, m] for j in range(T)]
        for i in range(T):
            taken = sum(c[i, j] / (incoming[i] * (i + 1)) * u[j] for j in range(i + 1))
            out[b, i, n] = plain.sigmoid(sink[i]) * taken
    return out


def inline_attention(q, k, v):
    (B, T, N, _), (S, K, D) = q.shape, v.shape[1:]
    out = np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        s = np.array([q[b, i, n] @ k[b, j, n * K // N] for j in range(S)])
        out[b, i, n] = (s - s.mean() + 1 / S) @ v[b, :, n * K // N]
    return out


def inline_local_attention(q, k, v, coefficients, shape):
    (B, T, N, _), K, (rows, columns) = q.shape, k.shape[2], shape
    out = inline_attention(q, k, v)
    for b, i, n in np.ndindex(B, T, N):
        row, column = divmod(i, columns)
        for y, x in np.ndindex(3, 3):
            r, c = row + y - 1, column + x - 1
            if 0 <= r < rows and 0 <= c < columns:
                out[b, i, n] += coefficients[b, n, y, x] * v[b, r * columns + c, n * K // N]
    return out


def _elu1(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def rala(q, k, v, gate):
    (B, T, N, H), (S, K, D) = q.shape, v.shape[1:]
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        keys, values = k[b, :, n * K // N], v[b, :, n * K // N]
        a = S * plain.softmax(keys @ q[b, :, n].mean(0) / np.sqrt(H))
        for i in range(T):
            w = np.array([a[j] * (_elu1(q[b, i, n]) @ _elu1(keys[j])) for j in range(S)])
            out[b, i, n] = gate[b, i, n] * (w @ values / w.sum())
    return out


def _depthwise(x, kernel):
    """x (rows,columns,channels), kernel (k,k,channels): each channel by itself."""
    (rows, columns, _), k, out = x.shape, len(kernel), np.zeros(x.shape)
    for r, c, y, z in np.ndindex(rows, columns, k, k):
        i, j = r + y - k // 2, c + z - k // 2
        if 0 <= i < rows and 0 <= j < columns:
            out[r, c] += kernel[y, z] * x[i, j]
    return out


def local_linear_attention(q, k, v, local, shape):
    (B, T, N, _), D = q.shape, v.shape[3]
    relu = lambda x: np.maximum(x, 0)
    out = _weighted(q, k, v, lambda x, y: relu(x) @ relu(y), causal=False)
    gelu = np.vectorize(lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))))
    for b, n in np.ndindex(B, N):
        hidden = gelu(_depthwise(out[b, :, n].reshape(*shape, D), local.first[:, :, n]))
        hidden = local.scale[n] * hidden + local.shift[n]
        out[b, :, n] += _depthwise(hidden, local.second[:, :, n]).reshape(T, D)
    return out


def additive_attention(q, k, v, w):
    (B, T, N, H), K = q.shape, k.shape[2]
    out = np.zeros((B, T, N, v.shape[3]))
    for b, n in np.ndindex(B, N):
        a = plain.softmax(np.array([w[n] @ q[b, t, n] / np.sqrt(H) for t in range(T)]))
        g = sum(a[t] * q[b, t, n] for t in range(T))
        for t in range(T):
            out[b, t, n] = v[b, t, n * K // N] * k[b, t, n * K // N] * g
    return out


def decoupled_attention(x, weights, shape):
    (B, T, _), d1 = x.shape, weights.qkv.shape[1]
    q, k, v = (np.tensordot(x[..., :d1], w, 1) for w in weights.qkv)
    far = _weighted(q, k, v, lambda x, y: _elu1(x) @ _elu1(y), causal=False)
    out = np.zeros(x.shape)
    out[..., :d1] = far.reshape(B, T, d1)
    half = weights.small.shape[-1]
    for b in range(B):
        cells = x[b].reshape(*shape, -1)
        small = _depthwise(cells[..., d1 : d1 + half], weights.small)
        large = _depthwise(cells[..., d1 + half :], weights.large)
        out[b, :, d1:] = np.concatenate([small, large], -1).reshape(T, -1)
    return out


def _gelu_tanh(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _interact(x, inter, shape):
    """x (T,width) of one example."""
    centered = x - x.mean(-1, keepdims=True)
    normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
    hidden = _gelu_tanh(normed @ inter.expand).reshape(*shape, -1)
    return _gelu_tanh(_depthwise(hidden, inter.mix)).reshape(len(x), -1) @ inter.contract


def care_attention(x, memory, weights, shape):
    u = decoupled_attention(x, weights.decoupled, shape)
    out = np.zeros(x.shape)
    for b in range(len(x)):
        y = np.concatenate([_interact(u[b], weights.inter_1, shape), memory[b]], -1)
        out[b] = (y + _interact(y, weights.inter_2, shape))[:, : x.shape[-1]]
    return out
