"""Oracles of attnjax.ops.recurrent: memories, convolutions and scans, as float64 loops."""

from math import erf as _erf
from math import pi as _pi

import numpy as np

from tests.oracles import plain as _plain


def _elu1(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def _heads(x, N):
    """(B,S,K,H) -> (B,S,N,H)."""
    return np.repeat(x, N // x.shape[2], axis=2)


def _infini(q, k, v, beta, segment, recalled):
    """`recalled(query, keys, values)`: what a memory of some whole segments says of a query."""
    (B, T, N, H), D = q.shape, v.shape[-1]
    k, v = _heads(k, N), _heads(v, N)
    out = np.zeros((B, T, N, D))
    for b, t, n in np.ndindex(B, T, N):
        start = t // segment * segment
        w = _plain.softmax(k[b, start : t + 1, n] @ q[b, t, n] / np.sqrt(H))
        local = w @ v[b, start : t + 1, n]
        past = recalled(_elu1(q[b, t, n]), _elu1(k[b, :start, n]), v[b, :start, n])
        gate = _plain.sigmoid(beta[n])
        out[b, t, n] = gate * past + (1 - gate) * local
    return out


def infini_attention(q, k, v, beta, segment):
    def recalled(query, keys, values):
        if len(keys) == 0:
            return np.zeros(v.shape[-1])
        w = keys @ query
        return w @ values / w.sum()

    return _infini(q, k, v, beta, segment, recalled)


def infini_delta_attention(q, k, v, beta, segment):
    def recalled(query, keys, values):
        """Every key's addition is a vector; a memory is their weighted sum."""
        if len(keys) == 0:
            return np.zeros(v.shape[-1])
        added = np.zeros_like(values)
        for start in range(0, len(keys), segment):
            for j in range(start, start + segment):
                known = 0.0
                if start:
                    w = keys[:start] @ keys[j]
                    known = w @ added[:start] / w.sum()
                added[j] = values[j] - known
        w = keys @ query
        return w @ added / w.sum()

    return _infini(q, k, v, beta, segment, recalled)


def titans_memory(q, k, v, eta, theta, alpha, weights, chunk=16):
    """Token by token, with the gradients of one matrix or of a network of two written out."""
    (B, T, N, _), D = q.shape, v.shape[-1]
    k, v = _heads(k, N), _heads(v, N)
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        memory = [w[n].copy() for w in weights]
        momentum = [np.zeros_like(w) for w in memory]
        for t in range(T):
            if t % chunk == 0:
                at = [w.copy() for w in memory]
            key, value = k[b, t, n], v[b, t, n]
            if len(at) == 1:
                gradient = [2 * np.outer(key, key @ at[0] - value)]
            else:
                hidden = key @ at[0]
                gate = _plain.sigmoid(hidden)
                error = 2 * (hidden * gate @ at[1] - value)
                slope = gate * (1 + hidden * (1 - gate))
                gradient = [np.outer(key, at[1] @ error * slope), np.outer(hidden * gate, error)]
            for i, g in enumerate(gradient):
                momentum[i] = eta[b, t, n] * momentum[i] - theta[b, t, n] * g
                memory[i] = (1 - alpha[b, t, n]) * memory[i] + momentum[i]
            read = q[b, t, n] @ memory[0]
            if len(memory) == 2:
                read = read * _plain.sigmoid(read) @ memory[1]
            out[b, t, n] = read
    return out


def memory_as_gate(q, k, v, memory, gate, persistent, window):
    (B, T, N, H), S = q.shape, k.shape[1]
    k, v = _heads(k, N), _heads(v, N)
    learned_k, learned_v = (_heads(x[None], N)[0] for x in persistent)
    out = np.zeros_like(memory)
    for b, t, n in np.ndindex(B, T, N):
        near = range(max(0, t - window + 1), min(t + 1, S))
        keys = [*learned_k[:, n], *(k[b, j, n] for j in near)]
        values = [*learned_v[:, n], *(v[b, j, n] for j in near)]
        w = _plain.softmax(np.array(keys) @ q[b, t, n] / np.sqrt(H))
        g = _plain.sigmoid(gate[b, t, n])
        out[b, t, n] = (1 - g) * (w @ np.array(values)) + g * memory[b, t, n]
    return out


def damped_ema(x, weights):
    """By its kernel."""
    alpha, delta, beta, eta = weights
    out = np.zeros_like(x)
    for t in range(x.shape[1]):
        for j in range(t + 1):
            out[:, t] += (eta * (1 - alpha * delta) ** (t - j) * alpha * beta).sum(-1) * x[:, j]
    return out


def damped_ema_convolution(x, weights):
    """By its recurrence."""
    alpha, delta, beta, eta = weights
    out, h = np.zeros_like(x), np.zeros((len(x), *alpha.shape))
    for t in range(x.shape[1]):
        h = alpha * beta * x[:, t, :, None] + (1 - alpha * delta) * h
        out[:, t] = (eta * h).sum(-1)
    return out


def _silu(x):
    return x * _plain.sigmoid(x)


def mega(x, weights, chunk=None):
    ema, z, q, k, v, reset, update, h, u, bias = weights
    (B, T, _), radius = x.shape, len(bias) // 2
    smooth = damped_ema_convolution(x, ema)
    Z, V = _silu(smooth @ z[0] + z[1]), _silu(x @ v[0] + v[1])
    Q, K = Z * q[0] + q[1], Z * k[0] + k[1]
    O = np.zeros_like(V)
    for b, t in np.ndindex(B, T):
        start = 0 if chunk is None else t // chunk * chunk
        for j in range(start, t + 1):
            s = Q[b, t] @ K[b, j] / (t + 1 - start) + bias[radius + max(j - t, -radius)]
            O[b, t] += 0.5 * (1 + _erf((s - 0.5**0.5) / (2 / (4 * _pi)) ** 0.5)) * V[b, j]
    R, P = _silu(smooth @ reset[0] + reset[1]), _plain.sigmoid(smooth @ update[0] + update[1])
    return P * _silu(smooth @ h[0] + h[1] + (R * O) @ u) + (1 - P) * x


def chela(x, weights):
    """The two convolutions apart, and attention as a sum over pairs."""
    long, short, z, q, k, v, out, gate = weights
    smooth, o = np.zeros_like(x), np.zeros((*x.shape[:2], *v.shape[1:]))
    for kernel in (long, short):
        for t in range(x.shape[1]):
            for j in range(min(t + 1, len(kernel))):
                smooth[:, t] += kernel[j] * x[:, t - j]
    Z = _silu(smooth @ z[0] + z[1])[:, :, None]
    Q, K = _silu(Z * q[0] + q[1]), _silu(Z * k[0] + k[1])
    V = _silu(np.einsum("btw,wnd->btnd", x, v))
    for b, t, n in np.ndindex(o.shape[:3]):
        o[b, t, n] = sum(Q[b, t, n] @ K[b, j, n] * V[b, j, n] for j in range(t + 1))
    o /= np.sqrt((o**2).mean(-1, keepdims=True) + 1e-6)
    G = _plain.sigmoid(x @ gate[0] + gate[1])
    return G * np.einsum("btnd,ndw->btw", o, out) + (1 - G) * x


def lavo(x, weights):
    """With every memory written out: its rows, their keys and their values."""
    bases, w_q, w_k, w_v, bias = weights
    (B, T, _), (N, window) = x.shape, bias.shape
    w_k, w_v = _heads(w_k[None], N)[0], _heads(w_v[None], N)[0]
    out = np.zeros((B, T, N, w_v.shape[-1]))
    for b, t, n in np.ndindex(B, T, N):
        mean = (x[b, : t + 1] @ bases.T).mean(0)
        memory = np.diag(mean) @ bases
        near = range(max(0, t - window + 1), t + 1)
        keys = np.concatenate([memory, x[b, near]])
        shift = np.array([0.0] * len(memory) + [bias[n, t - j] for j in near])
        s = keys @ w_k[:, n] @ (x[b, t] @ w_q[:, n]) / np.sqrt(w_q.shape[-1]) + shift
        out[b, t, n] = _plain.softmax(s) @ keys @ w_v[:, n]
    return out


def selective_ssm(x, dt, a, b, c):
    """As a sum over pairs of tokens."""
    out, so_far = np.zeros_like(x), np.cumsum(dt, axis=1)
    for t in range(x.shape[1]):
        for j in range(t + 1):
            kept = np.exp((so_far[:, t] - so_far[:, j])[..., None] * a)
            weight = (kept * (b[:, j] * c[:, t])[:, None]).sum(-1)
            out[:, t] += weight * dt[:, j] * x[:, j]
    return out


def selective_token_mixer(x, weights):
    w_x, w_gate, conv, dt, b, c, log_a, skip, w_out = weights
    inner = x @ w_x
    u = np.zeros_like(inner)
    for t in range(x.shape[1]):
        u[:, t] = sum(conv[j] * inner[:, t - j] for j in range(min(t + 1, len(conv))))
    u = _silu(u)
    rates = np.log1p(np.exp(u @ dt[0] + dt[1]))
    read = selective_ssm(u, rates, -np.exp(log_a), u @ b, u @ c)
    return ((read + skip * u) * _silu(x @ w_gate)) @ w_out


def _both(x, forward, backward):
    reverse = selective_token_mixer(x[:, ::-1], backward)[:, ::-1]
    return selective_token_mixer(x, forward) + reverse


def mamba_mixer(x, layers, averages):
    tokens, channels = [x], [x]
    for l, (token, forward, backward) in enumerate(layers):
        alpha, beta, theta, gamma = (row[l] for row in averages)
        mixed = sum(alpha[i] * tokens[i] + beta[i] * channels[i] for i in range(l + 1))
        tokens.append(selective_token_mixer(mixed, token))
        mixed = sum(theta[i] * tokens[i] for i in range(l + 2))
        mixed = mixed + sum(gamma[i] * channels[i] for i in range(l + 1))
        channels.append(_both(mixed.transpose(0, 2, 1), forward, backward).transpose(0, 2, 1))
    return channels[-1]


def mambattention(x, shared, time, frequency):
    def block(rows, scale, shift, forward, backward):
        centered = rows - rows.mean(-1, keepdims=True)
        normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * scale + shift
        q, k, v = (np.einsum("tw,wnh->tnh", normed, w)[None] for w in shared[:3])
        heads = _plain.blend(_plain.weights(q, k, None), v)[0]
        rows = rows + np.einsum("tnh,nhw->tw", heads, shared[3])
        return rows + _both(rows[None], forward, backward)[0]

    out = x.copy()
    for b in range(len(x)):
        for f in range(x.shape[2]):
            out[b, :, f] = block(out[b, :, f], *time)
        for t in range(x.shape[1]):
            out[b, t] = block(out[b, t], *frequency)
    return out


def multiscale_scan(x, routes, down, gate, rate=2):
    B, rows, columns, W = x.shape
    low = np.zeros((B, -(-rows // rate), -(-columns // rate), W))
    for r, c, i, j in np.ndindex(*low.shape[1:3], 3, 3):
        row, column = rate * r + i - 1, rate * c + j - 1
        if 0 <= row < rows and 0 <= column < columns:
            low[:, r, c] += down[i, j] * x[:, row, column]
    out = np.zeros_like(x)
    for i, (dt, b, c, log_a, skip) in enumerate(routes):
        grid, step = (low, rate) if i else (x, 1)
        order = list(np.ndindex(*grid.shape[1:3]))
        if i % 2:
            order.sort(key=lambda place: place[::-1])
        if i >= 2:
            order.reverse()
        tokens = np.stack([grid[(slice(None), *place)] for place in order], axis=1)
        rates = np.log1p(np.exp(tokens @ dt[0] + dt[1]))
        y = selective_ssm(tokens, rates, -np.exp(log_a), tokens @ b, tokens @ c) + skip * tokens
        for n, (r, col) in enumerate(order):
            out[:, step * r : step * (r + 1), step * col : step * (col + 1)] += y[:, n, None, None]
    return out * _silu(x @ gate[0] + gate[1])
